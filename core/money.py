"""Fen on paper: yuan with two decimals. In the core money is integer fen only; nothing is ever computed from these texts."""

import re
from typing import Final

CURRENCY: Final = "CNY"
_YUAN: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})\.[0-9]{2}")


def yuan(amount_fen: int) -> str:
    """1234.05 for 123405 fen; -0.01 for -1."""
    whole, cents = divmod(abs(amount_fen), 100)
    return f"{'-' if amount_fen < 0 else ''}{whole}.{cents:02d}"


def grouped_yuan(amount_fen: int) -> str:
    """1,234.05 for 123405 fen."""
    whole, cents = divmod(abs(amount_fen), 100)
    return f"{'-' if amount_fen < 0 else ''}{whole:,}.{cents:02d}"


def parse_yuan(text: str) -> int:
    """Fen of what `yuan` writes, and of nothing else. Raises ValueError."""
    if not _YUAN.fullmatch(text) or text == "-0.00":
        raise ValueError(f"yuan with two decimals are wanted, not {text!r}")
    return int(text.replace(".", ""))
