"""Dividing money so that the parts add up to the fen."""

from collections.abc import Sequence


def divide(amount_fen: int, shares: Sequence[int]) -> list[int]:
    """Parts of an amount in proportion to shares, by largest remainder: each part is its exact share rounded down or up to a
    whole fen, and the parts add up to the amount. What rounding leaves over goes to the largest remainders, the earlier share
    first where they are equal. A negative amount is divided as its opposite is.

    Raises ValueError unless all shares are at least 0 and one is more."""
    total = sum(shares)
    if total <= 0 or any(share < 0 for share in shares):
        raise ValueError(f"shares of at least 0, and one of them more, are wanted, not {list(shares)}")
    if amount_fen < 0:
        return [-part for part in divide(-amount_fen, shares)]
    parts = [amount_fen * share // total for share in shares]
    remainders = [amount_fen * share % total for share in shares]
    left_fen = amount_fen - sum(parts)
    for at in sorted(range(len(shares)), key=lambda at: (-remainders[at], at))[:left_fen]:
        parts[at] += 1
    return parts
