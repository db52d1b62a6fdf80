"""bench ride-code: offline ride codes checked at a gate, on one core, against OpenSSL's own SM2 verify of one signature.

Cold: a code of an issuer and a phone that the gate has not seen before: three signatures are verified and two keys decoded.
Cached: the next code of a phone whose issuer part was checked before: one signature. Both read the code and check all its fields,
as a gate does. The baseline is EVP_DigestVerify in C with its key parsed once. They take turns, so that a machine that slows down
slows all."""

import hashlib
import os
import time
from collections.abc import Callable

from yikatong.bench.result import BenchResult, Progress, machine, median, timed
from yikatong.core.cards.ride_code import Checker, IssuerPart, RideCode, make_certificate, make_code, make_issuer_part
from yikatong.core.sm2 import PrivateKey
from yikatong.ext import sm2

NOW_S = 1_735_689_600
MESSAGE_BYTES = 300  # what the signatures of a ride code stand under: 53, 214 and 283 bytes
TURNS_MIN = 3


def make_codes(count: int) -> tuple[PrivateKey, list[bytes], list[bytes]]:
    """The authority's key, `count` codes of one phone, and as many each of an issuer and a phone of its own."""
    authority = PrivateKey.make()
    issuer, phone = PrivateKey.make(), PrivateKey.make()
    part = _issuer_part(authority, issuer, phone, 0)
    same = [make_code(part, phone, NOW_S - at % 30) for at in range(count)]
    others = []
    for at in range(count):
        issuer, phone = PrivateKey.make(), PrivateKey.make()
        others.append(make_code(_issuer_part(authority, issuer, phone, at), phone, NOW_S))
    return authority, same, others


def _issuer_part(authority: PrivateKey, issuer: PrivateKey, phone: PrivateKey, at: int) -> bytes:
    certificate = make_certificate(issuer.public_key().point(), b"\x59\x80\x00\x01", 203_012, authority.sign_raw)
    part = IssuerPart(
        f"{at:016d}", f"9156{at:015d}", b"\x59\x80\x00\x01", b"\x59\x80\x00\x01", 1, 5_000, phone.public_key().point(),
        NOW_S + 86_400, 30, bytes(16),
    )  # fmt: skip
    return make_issuer_part(part, issuer.sign_raw, certificate)


def run(codes: int = 200, seconds: float = 6.0, *, progress: Progress = lambda *_: None) -> list[BenchResult]:
    """Measure for about `seconds` in all and at least three turns each, in codes and verifies per second on one core. Raises
    RuntimeError where a code or a signature is found wrong."""
    authority, same, others = make_codes(codes)
    signer = PrivateKey.make()
    message = bytes(MESSAGE_BYTES)
    pem, der = signer.public_pem(), signer.sign(message)

    def check(checker: Checker, some: list[bytes]) -> None:
        if not all(isinstance(checker.check(code, NOW_S), RideCode) for code in some):
            raise RuntimeError("a good code was refused")

    def baseline() -> None:
        if sm2.evp_verify(pem, message, der, codes) != codes:
            raise RuntimeError("OpenSSL refuses its own signature")

    def cold() -> None:
        check(Checker({1: authority.public_key()}), others)

    warm = Checker({1: authority.public_key()})
    check(warm, same)
    works: dict[str, Callable[[], None]] = {"baseline": baseline, "cold": cold, "cached": lambda: check(warm, same)}
    rates: dict[str, list[float]] = {name: [] for name in works}
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        end = time.perf_counter() + seconds
        while len(rates["cold"]) < TURNS_MIN or time.perf_counter() < end:
            for name, work in works.items():
                rates[name].append(codes / timed(work))
            left_s = max(end - time.perf_counter(), 0.0)
            progress("checking ride codes", int(100 * (1 - left_s / seconds)) if seconds else 100, 100)
    finally:
        os.sched_setaffinity(0, affinity)

    said = hashlib.sha256(b"".join(each.part.account.encode() for each in map(_read, others))).hexdigest()
    return [
        BenchResult(
            name=f"ride code, {name}",
            value=median(rates[name]),
            unit="codes/s",
            baseline=f"{sm2.version()}, EVP_DigestVerify in C, one signature",
            baseline_value=median(rates["baseline"]),
            ratio=median(rates[name]) / median(rates["baseline"]),
            conditions={
                "work": work,
                "code_bytes": len(others[0]),
                **machine(),
                "cores": 1,
                "codes": codes,
                "turns": len(rates[name]),
                "durability": "none",
            },
            result_hash=said,
        )
        for name, work in (
            ("cold", "read it, three signatures, two keys decoded"),
            ("cached", "read it, one signature; issuer part known by its digest"),
        )
    ]


def _read(code: bytes) -> RideCode:
    from yikatong.core.cards.ride_code import read

    return read(code)
