"""One vocabulary in four places: core/types.py, the C headers, the protos, and the names that C knows of the protos."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from yikatong.core import tap, types
from yikatong.ext import engine
from yikatong.v1 import result_pb2, tap_service_pb2

ROOT = Path(__file__).resolve().parent.parent
EXT = ROOT / "ext"

TAP_FIELDS = tap_service_pb2.Tap.DESCRIPTOR.fields
RECORD_FIELDS = list(types.RECORD.names or ())

# decode.c names the fields of Tap without their units.
C_FIELD_NAMES = {
    "amount_fen": "AMOUNT",
    "amount_due_fen": "AMOUNT_DUE",
    "chip_balance_before_fen": "CHIP_BEFORE",
    "chip_balance_after_fen": "CHIP_AFTER",
}

# The compiler itself tells what the C files say: including them shows what is private to them as well.
PROGRAM = """
#include <stdio.h>
#include "decode.c"
#include "respond.c"
#define TELL(name, value) printf("%s %lld\\n", name, (long long)(value))
int main(void) {
    TELL("record bytes", sizeof(yk_record));
    TELL("outcome bytes", sizeof(yk_outcome));
    TELL("names", sizeof tap_fields / sizeof *tap_fields);
    for (unsigned i = 1; i < sizeof tap_fields / sizeof *tap_fields; i++) printf("name:%s %u\\n", tap_fields[i], i);
    for (unsigned i = 1; i < TAP_FIELD_END; i++) printf("wire:%u %u\\n", i, tap_wire[i]);
%s    return 0;
}
"""


def _program() -> str:
    names = [f"YK_{name}" for name in types.Result.__members__]
    names += [f"YK_RECORD_{name}" for name in types.RecordKind.__members__]
    names += [f"YK_FLAG_{name}" for name in types.Flag.__members__]
    names += [f"YK_FARE_{name}" for name in types.FareFlag.__members__] + ["YK_FARE_RIDER_SHIFT"]
    names += ["YK_RESULT_END", "YK_NONE", "YK_ACCOUNT_FUNDING", "YK_UNDECIDED", "TAP_FIELD_END"]
    names += [
        "YK_DECODE_TRUNCATED",
        "YK_DECODE_BAD_TAG",
        "YK_DECODE_NO_TAP",
        "YK_DECODE_TOO_MANY",
        "YK_DECODE_TAP_TWICE",
    ]
    names += [f"TAP_{C_FIELD_NAMES.get(field.name, field.name.upper())}" for field in TAP_FIELDS]
    lines = [f'TELL("{name}", {name});' for name in names]
    for struct, fields in (("yk_record", RECORD_FIELDS), ("yk_outcome", engine.OUTCOME.names)):
        for field in fields:
            lines.append(f'TELL("{struct}.{field}", offsetof({struct}, {field}));')
            lines.append(f'TELL("{struct}.{field} bytes", sizeof ((({struct} *)0)->{field}));')
    return PROGRAM.replace("%s    return", "".join(f"    {line}\n" for line in lines) + "    return")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the C compiler makes of the headers: constants, offsets, sizes."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("types")
    (folder / "tell.c").write_text(_program())
    subprocess.run([compiler, "-std=gnu11", f"-I{EXT}", "tell.c", "-o", "tell"], cwd=folder, check=True, capture_output=True)
    lines = subprocess.run([folder / "tell"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: int(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


# ---- result codes ----


def test_results_are_those_of_the_proto() -> None:
    of_proto = {name.removeprefix("RESULT_"): number for name, number in result_pb2.Result.items() if number}
    assert {result.name: result.value for result in types.Result} == of_proto


def test_results_are_those_of_c(told: dict[str, int]) -> None:
    assert {result.name: told[f"YK_{result.name}"] for result in types.Result} == dict(types.Result.__members__)
    assert told["YK_RESULT_END"] == max(types.Result) + 1
    assert told["YK_UNDECIDED"] == result_pb2.RESULT_UNSPECIFIED


def test_c_knows_no_other_results() -> None:
    """An enumerator that only C has would be answered by a number that has no name."""
    header = (EXT / "types.h").read_text()
    enum = header[header.index("YK_UNDECIDED") : header.index("YK_RESULT_END")]
    assert enum.count("YK_") == len(types.Result) + 1


def test_results_stand_in_groups_of_precedence() -> None:
    """Whoever reads only the number can tell what kind of answer it is (result.proto)."""
    decade = {result: result // 10 for result in types.Result}
    malformed = {result for result in types.Result if result.name.startswith("MALFORMED_")}
    unknown = {result for result in types.Result if result.name.startswith("UNKNOWN_")}
    assert {decade[result] for result in types.CHARGED} == {0}
    assert {decade[result] for result in malformed} == {1, 2}
    assert {decade[result] for result in unknown} == {4}


# ---- kinds, flags, other constants ----


def test_kinds_and_flags_are_those_of_c(told: dict[str, int]) -> None:
    assert {kind.name: told[f"YK_RECORD_{kind.name}"] for kind in types.RecordKind} == dict(types.RecordKind.__members__)
    assert {flag.name: told[f"YK_FLAG_{flag.name}"] for flag in types.Flag} == dict(types.Flag.__members__)


def test_constants_are_those_of_c(told: dict[str, int]) -> None:
    assert {flag.name: told[f"YK_FARE_{flag.name}"] for flag in types.FareFlag} == dict(types.FareFlag.__members__)
    assert told["YK_FARE_RIDER_SHIFT"] == types.FARE_RIDER_SHIFT
    assert told["YK_NONE"] == types.NONE == engine.NONE
    assert told["YK_ACCOUNT_FUNDING"] == types.ACCOUNT_FUNDING


def test_sizes_of_what_python_packs_are_those_of_c() -> None:
    assert {name: getattr(engine, name).itemsize for name in engine.SIZES} == engine.SIZES


def test_every_decode_error_is_explained(told: dict[str, int]) -> None:
    assert set(tap.DECODE_ERRORS) == {value for name, value in told.items() if name.startswith("YK_DECODE_")}


# ---- layouts ----


@pytest.mark.parametrize(
    ("struct", "dtype"), [("yk_record", types.RECORD), ("yk_outcome", engine.OUTCOME)], ids=["record", "outcome"]
)
def test_layout_is_that_of_c(told: dict[str, int], struct: str, dtype: np.dtype) -> None:
    assert dtype.fields is not None
    got = {name: (offset, each.itemsize) for name, (each, offset) in dtype.fields.items()}
    assert got == {name: (told[f"{struct}.{name}"], told[f"{struct}.{name} bytes"]) for name in dtype.fields}
    assert dtype.itemsize == told[f"{struct.removeprefix('yk_')} bytes"]


def test_record_leaves_no_gap() -> None:
    """A byte that no field covers would go to disk unseen."""
    covered = np.zeros(types.RECORD.itemsize, int)
    assert types.RECORD.fields is not None
    for each, offset in types.RECORD.fields.values():
        covered[offset : offset + each.itemsize] += 1
    assert np.flatnonzero(covered == 0).tolist() == []
    unions = [*range(40, 48), *range(68, 104), 118, 122, 123]  # see types.RECORD
    assert np.flatnonzero(covered > 1).tolist() == unions


# ---- what C knows of the proto Tap ----


def test_field_numbers_are_those_of_the_proto(told: dict[str, int]) -> None:
    numbers = {field.name: field.number for field in TAP_FIELDS}
    assert {name: told[f"TAP_{C_FIELD_NAMES.get(name, name.upper())}"] for name in numbers} == numbers
    assert told["TAP_FIELD_END"] == max(numbers.values()) + 1


def test_field_names_are_those_of_the_proto(told: dict[str, int]) -> None:
    names = {name.removeprefix("name:"): value for name, value in told.items() if name.startswith("name:")}
    assert names == {field.name: field.number for field in TAP_FIELDS}
    assert told["names"] == len(names) + 1


def test_wire_types_are_those_of_the_proto(told: dict[str, int]) -> None:
    length_delimited = {field.TYPE_STRING for field in TAP_FIELDS} | {field.TYPE_BYTES for field in TAP_FIELDS}
    length_delimited |= {field.TYPE_MESSAGE for field in TAP_FIELDS}
    for field in TAP_FIELDS:
        assert told[f"wire:{field.number}"] == (2 if field.type in length_delimited else 0), field.name


ENUM_BOUNDS = """
enum       | values
Profile    | 1 2
TapKind    | 1 2 3 4
Direction  | 1 2
Rider      | 1 2 3 4 5 6 7
"""


@pytest.mark.parametrize("row", ENUM_BOUNDS.strip().splitlines()[1:])
def test_enums_are_as_decode_c_bounds_them(row: str) -> None:
    """decode.c takes these values for granted: a new one in the proto must be let in there too."""
    name, values = (part.strip() for part in row.split("|"))
    enum = tap_service_pb2.DESCRIPTOR.enum_types_by_name[name]
    assert [value.number for value in enum.values if value.number] == [int(value) for value in values.split()]
