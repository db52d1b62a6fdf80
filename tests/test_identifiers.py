"""Numbers of persons and cards: right ones, each wrong one by its fault, and check characters that see every single slip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from people import citizen_number

from yikatong.core.identity import identifiers
from yikatong.core.identity.identifiers import (
    card_identifier_fault,
    citizen_number_fault,
    district_fault,
    is_within,
    social_card_check,
    social_card_number_fault,
)

TODAY = 20260131


# GB 11643-1999 itself gives the first two as examples.
CITIZENS = """
number             | fault
11010519491231002X |
440524188001010014 |
441602199003070019 | check
11010519491231002x | 17 digits
110105194912310021 | check
11010519491231002  | 17 digits
11010519491231002XX| 17 digits
1101051949123100 X | 17 digits
１１０１０５１９４９１２３１００２X | 17 digits
01010519491231002X | district
110105194902290021 | no date
110105200002290021 |
110105199913010021 | no date
110105190000000021 | no date
110105184912310021 | no date
110105202602010021 | not here yet
110105202601310021 | check
110105194912310005 | serial
"""


@pytest.mark.parametrize("row", CITIZENS.strip().splitlines()[1:])
def test_citizen_numbers(row: str) -> None:
    number, fault = (part.strip() for part in row.split("|"))
    told = citizen_number_fault(number, TODAY)
    assert (told is None) == (not fault), told
    assert fault in (told or "")


@given(serial=st.integers(1, 999), at=st.integers(0, 17), other=st.sampled_from("0123456789X"))
def test_a_slip_in_a_citizen_number_is_seen(serial: int, at: int, other: str) -> None:
    number = citizen_number(serial)
    assert citizen_number_fault(number, TODAY) is None
    assert identifiers.birth_date(number) == 19900307
    wrong = number[:at] + other + number[at + 1 :]
    assert (citizen_number_fault(wrong, TODAY) is None) == (wrong == number)


@given(serial=st.integers(1, 999), at=st.integers(0, 16))
def test_two_neighbours_changed_over_are_seen(serial: int, at: int) -> None:
    number = citizen_number(serial)
    wrong = number[:at] + number[at + 1] + number[at] + number[at + 2 :]
    assert (citizen_number_fault(wrong, TODAY) is None) == (wrong == number)


# Worked by hand: A1234567 is 10·3 + 1·7 + 2·9 + 3·10 + 4·5 + 5·8 + 6·4 + 7·2 = 183, 183 mod 11 = 7, 11 − 7 = 4.
CARDS = """
number     | fault
A12345674  |
A12345675  | check
000000000  |
100000008  |
40000000X  |
70000001X  |
700000010  | check
Z0000000   | 8 digits
a12345674  | 8 digits
A1234567A  | 8 digits
A123456 4  | 8 digits
"""


@pytest.mark.parametrize("row", CARDS.strip().splitlines()[1:])
def test_numbers_of_social_security_cards(row: str) -> None:
    number, fault = (part.strip() for part in row.split("|"))
    told = social_card_number_fault(number)
    assert (told is None) == (not fault), told
    assert fault in (told or "")


@given(st.text(alphabet="0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=8, max_size=8))
def test_the_check_character_makes_the_sum_come_out(first: str) -> None:
    check = social_card_check(first)
    assert check in "0123456789X"
    assert social_card_number_fault(first + check) is None
    total = sum(w * int(c, 36) for w, c in zip((3, 7, 9, 10, 5, 8, 4, 2), first, strict=True))
    assert (total + (10 if check == "X" else int(check))) % 11 == 0


IDENTIFIERS = """
identifier                       | fault
441600D1560000051122334455667788 |
441600D15600000511223344AABBCCDD |
441600D15600000511223344aabbccdd | 32 hexadecimal
441600D156000004AABBCCDD00112233 | 32 hexadecimal
041600D1560000051122334455667788 | district
441600D156000005112233445566778  | 32 hexadecimal
441600D15600000511223344556677889| 32 hexadecimal
"""


@pytest.mark.parametrize("row", IDENTIFIERS.strip().splitlines()[1:])
def test_card_identifiers(row: str) -> None:
    identifier, fault = (part.strip() for part in row.split("|"))
    told = card_identifier_fault(identifier)
    assert (told is None) == (not fault), told
    assert fault in (told or "")


@pytest.mark.parametrize(
    ("district", "of", "within"),
    [("441602", "", True), ("441602", "441600", True), ("441602", "440000", True), ("441602", "441602", True),
     ("441602", "441621", False), ("441600", "441602", False), ("441602", "440100", False)],
)  # fmt: skip
def test_districts(district: str, of: str, within: bool) -> None:
    assert is_within(district, of) == within
    assert district_fault(district) is None
    assert district_fault(district[1:]) is not None
