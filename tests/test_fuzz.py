"""Short runs of the fuzzers in tests/fuzz, from the corpus that longer runs have left there; and the decoder against the
protobuf runtime on mutations of that corpus.

For a longer run, compile a target as `build` does and give it a new folder for what it finds, then the corpus; afterwards
-merge=1 with the corpus first keeps what adds to it."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from test_decode import BAD_TAG, GROUP, LenientSubmitTapsRequest, decode, hold_against_protobuf, request_of

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests/fuzz/corpus"
SANITIZE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
RUN_S_MAX = 12
MUTATIONS = 40_000

TARGETS = {
    # name: sources beside the target's own, libraries, runs, longest input
    "decode": (["ext/decode.c"], [], 400_000, 2048),
    "transport": (["ext/grpc_server.c"], ["-lnghttp2"], 60_000, 8192),
}


def build(name: str, folder: Path) -> Path:
    """Compile a target with clang."""
    sources, libraries, _, _ = TARGETS[name]
    program = folder / f"fuzz_{name}"
    clang = shutil.which("clang")
    if clang is None:
        pytest.fail("clang is missing; Debian's packages are clang and libclang-rt-14-dev")
    command = [
        clang, "-std=gnu11", "-g", "-O1", *SANITIZE, f"tests/fuzz/fuzz_{name}.c", *sources, *libraries, "-o", str(program),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "libclang_rt" in done.stderr:
        pytest.fail(f"clang's sanitizers are missing; Debian's package is libclang-rt-14-dev\n{done.stderr}")
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_new_in_a_short_run(name: str, tmp_path: Path) -> None:
    """The whole corpus, then mutations of it: no crash, no sanitizer's report, no leak, no broken invariant."""
    _, _, runs, bytes_max = TARGETS[name]
    assert any((CORPUS / name).iterdir())
    found = tmp_path / "found"
    found.mkdir()
    command = [
        str(build(name, tmp_path)), f"-runs={runs}", f"-max_total_time={RUN_S_MAX}", f"-max_len={bytes_max}", "-seed=1",
        "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={tmp_path}/", str(found), str(CORPUS / name),
    ]  # fmt: skip
    own = os.environ | {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"


def mutated(random_: random.Random, seeds: list[bytes]) -> bytes:
    """A seed, a few of whose bytes were changed, dropped, doubled or taken from another."""
    data = bytearray(random_.choice(seeds))
    for _ in range(random_.choice((1, 1, 2, 4))):
        if not data:
            break
        at, end = sorted(random_.randrange(len(data) + 1) for _ in range(2))
        match random_.randrange(6):
            case 0:
                data[at - 1] = random_.randrange(256)
            case 1:
                data[at - 1] ^= 1 << random_.randrange(8)
            case 2 if end - at < 64:
                del data[at:end]
            case 3 if end - at < 64:
                data[at:at] = data[at:end]
            case 4:
                other = random_.choice(seeds)
                data[at:at] = other[: random_.randrange(len(other) + 1)]
            case _:
                data[at:at] = random_.randbytes(random_.randint(1, 5))
    return bytes(data[:2048])


def has_groups(data: bytes) -> bool:
    """Groups, which proto3 does not write, may be refused: the runtime reads them 100 deep, and field 0 in them."""
    request = LenientSubmitTapsRequest.FromString(data)
    messages = [request, *request.taps, *(tap.transfer for tap in request.taps)]
    return any(field.wire_type == GROUP for message in messages for field in UnknownFieldSet(message))


def test_the_decoder_against_protobuf_on_mutations() -> None:
    """test_decode.py draws messages from a model of them; here they come from what coverage has led the fuzzer to."""
    seeds = [path.read_bytes() for path in sorted((CORPUS / "decode").iterdir())]
    seeds += [request_of(seed) for seed in seeds]  # the fuzzer also reads an input as a single tap
    readable = [seed for seed in seeds if not isinstance(decode(seed), int)]
    seed = int(os.environ.get("YIKATONG_FUZZ_SEED", "1"))
    random_ = random.Random(seed)
    for number in range(MUTATIONS + len(seeds)):
        data = seeds[number] if number < len(seeds) else mutated(random_, readable if number % 4 else seeds)
        stored = bool(number % 2)
        try:
            hold_against_protobuf(data, stored)
        except AssertionError as failure:
            if decode(data, stored) == BAD_TAG and has_groups(data):
                continue
            raise AssertionError(f"YIKATONG_FUZZ_SEED={seed}, input {data.hex()}") from failure
