"""Numbers that say who a person or which card is, and their check characters (profile.md, "Cards and persons").

Each function returns why a number is wrong, for whoever refuses it and names its field, or None."""

import datetime
import re
from typing import Final

_CITIZEN_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CITIZEN_CHECKS: Final = "10X98765432"
_CITIZEN: Final = re.compile(r"[0-9]{17}[0-9X]")
_CARD_WEIGHTS: Final = (3, 7, 9, 10, 5, 8, 4, 2)
_CARD: Final = re.compile(r"[0-9A-Z]{8}[0-9X]")
_CARD_IDENTIFIER: Final = re.compile(r"[0-9]{6}D156000005[0-9A-F]{16}")
_DISTRICT: Final = re.compile(r"[1-9][0-9]{5}")
CITIZEN_YEAR_MIN: Final = 1850  # nobody on record is older


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


def citizen_number_fault(text: str, today: int) -> str | None:
    """What is wrong with a citizen number (GB 11643: district 6, date of birth 8, serial 3, check character 1) on a day
    (YYYYMMDD)."""
    if not _CITIZEN.fullmatch(text):
        return "17 digits and a check character, a digit or X, are wanted"
    if not _DISTRICT.fullmatch(text[:6]):
        return "its district does not begin with 0"
    birth = _date(text[6:14])
    if birth is None or birth.year < CITIZEN_YEAR_MIN:
        return "its date of birth is no date"
    if int(text[6:14]) > today:
        return "its date of birth is not here yet"
    if text[14:17] == "000":
        return "its serial number begins with 001"
    if citizen_check(text[:17]) != text[17]:
        return "its check character is wrong"
    return None


def citizen_check(first: str) -> str:
    """Check character of the first 17 digits of a citizen number (GB 11643, ISO 7064 MOD 11-2)."""
    return _CITIZEN_CHECKS[sum(weight * int(digit) for weight, digit in zip(_CITIZEN_WEIGHTS, first, strict=True)) % 11]


def birth_date(citizen_number: str) -> int:
    """YYYYMMDD."""
    return int(citizen_number[6:14])


def social_card_number_fault(text: str) -> str | None:
    """What is wrong with the number printed on a social security card: 8 characters and a check character."""
    if not _CARD.fullmatch(text):
        return "8 digits or capital letters and a check character, a digit or X, are wanted"
    if social_card_check(text[:8]) != text[8]:
        return "its check character is wrong"
    return None


def social_card_check(first: str) -> str:
    """Check character of the first 8 characters of a social security card's number."""
    rest = 11 - sum(weight * int(letter, 36) for weight, letter in zip(_CARD_WEIGHTS, first, strict=True)) % 11
    return {10: "X", 11: "0"}.get(rest, str(rest))


def card_identifier_fault(text: str) -> str | None:
    """What is wrong with a card identifier (卡识别码): district 6, registered application provider D156000005, chip serial 8 and
    check 8 hexadecimal digits. How the last are computed the profile does not say, so only their form is checked."""
    if not _CARD_IDENTIFIER.fullmatch(text):
        return "32 hexadecimal digits in capitals are wanted: a district, D156000005, chip serial and check of 8 each"
    if text[0] == "0":
        return "its district does not begin with 0"
    return None


def district_fault(text: str) -> str | None:
    """What is wrong with a district (GB/T 2260): six digits, the first not 0."""
    return None if _DISTRICT.fullmatch(text) else "six digits are wanted (GB/T 2260)"


def is_within(district: str, of: str) -> bool:
    """Whether a district is one or part of one: 441602 is within 441600, and all within the empty one."""
    while of.endswith("00"):
        of = of[:-2]
    return district.startswith(of)
