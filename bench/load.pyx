# cython: boundscheck=False
"""A gRPC load generator in C (load_client.h): unary calls over many connections, in a closed loop or at a fixed rate, and every
answer checked."""

import dataclasses
import ipaddress
import math
import socket

import numpy as np

from yikatong.core.errors import YikatongError

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free


cdef extern from "load_client.h" nogil:
    enum: YK_HISTOGRAM_BUCKETS, YK_LOAD_ANY, YK_LOAD_TAPS, YK_LOAD_RESULTS, YK_LOAD_SLOT_NS
    ctypedef struct yk_histogram:
        uint64_t counts[YK_HISTOGRAM_BUCKETS]
        uint64_t n
        uint64_t max_ns
        double sum_ns
    void yk_histogram_record(yk_histogram *histogram, uint64_t ns)
    uint64_t yk_histogram_upper_ns(uint32_t bucket)
    uint64_t yk_histogram_percentile_ns(const yk_histogram *histogram, double percent)

    ctypedef struct yk_load_config:
        const char *host
        const char *port
        const char *authority
        const char *path
        const char *server_name
        const char *ca
        const char *certificate
        const char *key
        int tls
        uint32_t connections
        uint32_t streams
        double rate
        int exponential
        uint64_t seed
        uint64_t tick_ns
        const uint8_t *requests
        const int64_t *offsets
        uint64_t n
        int repeat
        uint64_t seconds_ns
        uint64_t drain_ns
        uint64_t connect_ns
        uint32_t timeout_ms
        int check
        int64_t charged_fen
        int resend
    ctypedef struct yk_load_slot:
        uint64_t sent, ok, refused, wrong, failed, max_ns
    ctypedef struct yk_load_result:
        uint64_t sent, ok, refused, wrong, failed, unanswered, unsent, resent, reconnects, taps
        uint64_t statuses[17]
        uint64_t results[YK_LOAD_RESULTS]
        uint64_t start_ns, end_ns
        yk_histogram latency
        yk_histogram refused_latency
        yk_histogram lag
        yk_load_slot *slots
        uint32_t slots_n
        char *first_wrong
        char *first_lost
        char *error
    ctypedef struct yk_load:
        pass
    yk_load *yk_load_new(const yk_load_config *config)
    int yk_load_run(yk_load *load, uint64_t slice_ns)
    yk_load_result *yk_load_result_of(yk_load *load)
    void yk_load_free(yk_load *load)


class LoadFailed(YikatongError):
    """The run could not begin: no connection, or TLS refused."""


SLOT_S = YK_LOAD_SLOT_NS / 1e9
"""Length of a slot of `Result.series`, seconds."""

SERIES = np.dtype([(name, np.uint64) for name in ("sent", "ok", "refused", "wrong", "failed", "max_ns")])
"""A slot of the time series: requests begun, answers by kind, and the longest latency (ns) of an ok or refused answer in it."""


cdef class Histogram:
    """Times from 1 ns to 100 s, each kept to a thousandth of itself."""

    cdef yk_histogram *histogram

    def __cinit__(self):
        self.histogram = <yk_histogram *>calloc(1, sizeof(yk_histogram))
        if self.histogram == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.histogram)

    def record(self, times_ns) -> None:
        """Count every value of an array; what is above 100 s counts as 100 s."""
        cdef const uint64_t[::1] values = np.ascontiguousarray(times_ns, np.uint64).reshape(-1)
        cdef Py_ssize_t i
        for i in range(values.shape[0]):
            yk_histogram_record(self.histogram, values[i])

    def __len__(self) -> int:
        return self.histogram.n

    def percentile_ms(self, double percent) -> float:
        """The time that `percent` (0 to 100) of all do not exceed, never above the maximum; NaN when empty."""
        if not 0 <= percent <= 100:
            raise ValueError("percent: 0 to 100 is wanted")
        return yk_histogram_percentile_ns(self.histogram, percent) / 1e6 if self.histogram.n else math.nan

    @property
    def max_ms(self) -> float:
        """Exact; NaN when empty."""
        return self.histogram.max_ns / 1e6 if self.histogram.n else math.nan

    @property
    def mean_ms(self) -> float:
        """Exact; NaN when empty."""
        return self.histogram.sum_ns / self.histogram.n / 1e6 if self.histogram.n else math.nan

    def buckets(self):
        """Counts (uint64) and, for each, the largest time in ns (uint64) that falls into it; empty buckets are left out."""
        counts = np.asarray(<uint64_t[:YK_HISTOGRAM_BUCKETS]>self.histogram.counts)
        used = np.flatnonzero(counts)
        return counts[used].copy(), np.array([yk_histogram_upper_ns(i) for i in used], np.uint64)

    def add(self, Histogram other) -> None:
        """Count what another one has counted as well."""
        cdef int i
        for i in range(YK_HISTOGRAM_BUCKETS):
            self.histogram.counts[i] += other.histogram.counts[i]
        self.histogram.n += other.histogram.n
        self.histogram.sum_ns += other.histogram.sum_ns
        self.histogram.max_ns = max(self.histogram.max_ns, other.histogram.max_ns)


cdef Histogram copy_histogram(const yk_histogram *histogram):
    made = Histogram()
    made.histogram[0] = histogram[0]
    return made


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a run. `sent` is `ok + refused + wrong + failed + unanswered`."""

    sent: int
    """Requests that were begun, each once."""
    ok: int
    """Answers that passed the check."""
    refused: int
    """Answers RESOURCE_EXHAUSTED."""
    wrong: int
    """All other answers; `first_wrong` describes the first."""
    failed: int
    """Lost with a connection or a reset stream and not sent again."""
    unanswered: int
    """Still open when the run ended."""
    unsent: int
    """Open loop: due before the end, but never begun, since no connection had room."""
    resent: int
    reconnects: int
    """Connections made again after one was lost; `first_lost` says why the first was."""
    taps: int
    """Accepted taps in ok answers (check "taps")."""
    elapsed_s: float
    """From the start to the last answer, or to the end of `seconds` if that is later."""
    statuses: object
    """Answers by grpc-status: (17,) int64."""
    results: object
    """Taps by result code: (256,) int64; the last takes all codes above."""
    latency: Histogram
    """Ok answers. Open loop: from when the request was due."""
    refused_latency: Histogram
    lag: Histogram
    """Open loop: from due to begun; what of the latency was spent in the generator."""
    series: object
    """What happened over time: array of SERIES, one a 100 ms."""
    first_wrong: str
    first_lost: str
    error: str
    """Why the run ended early; empty when it did not."""

    @property
    def rate(self) -> float:
        """Ok answers a second."""
        return self.ok / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def taps_rate(self) -> float:
        """Accepted taps a second."""
        return self.taps / self.elapsed_s if self.elapsed_s else 0.0


def pack(requests):
    """Requests as one buffer (uint8) and n + 1 offsets (int64). Takes those two in a tuple, an array (n, length) of uint8, or a
    sequence of bytes. Raises ValueError for offsets that do not go up or leave the buffer."""
    if isinstance(requests, tuple) and len(requests) == 2 and isinstance(requests[1], np.ndarray):
        given = np.frombuffer(requests[0], np.uint8) if isinstance(requests[0], bytes) else requests[0]
        buffer = np.ascontiguousarray(given, np.uint8)
        offsets = np.ascontiguousarray(requests[1], np.int64)
        if buffer.ndim != 1 or offsets.ndim != 1:
            raise ValueError("requests: a buffer and offsets of one dimension are wanted")
    elif isinstance(requests, np.ndarray):
        if requests.ndim != 2 or requests.dtype != np.uint8:
            raise ValueError("requests: an array (n, length) of uint8 is wanted")
        buffer = np.ascontiguousarray(requests).reshape(-1)
        offsets = np.arange(len(requests) + 1, dtype=np.int64) * requests.shape[1]
    else:
        buffer = np.frombuffer(b"".join(requests), np.uint8)
        offsets = np.zeros(len(requests) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, requests), np.int64, len(requests)), out=offsets[1:])
    if len(offsets) < 2:
        raise ValueError("requests: at least one is wanted")
    if offsets[0] < 0 or offsets[-1] > len(buffer) or (np.diff(offsets) < 0).any():
        raise ValueError("requests: the offsets do not go up within the buffer")
    return buffer, offsets


def resolve(address: str) -> tuple[str, str, str]:
    """Numeric host, port, and name of "host:port" or "[IPv6]:port"."""
    name, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal():
        raise ValueError(f"{address}: host:port is wanted")
    name = name.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(name)
        return name, port, name
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise LoadFailed(f"{address}: {error.strerror}") from None
    return found[0][4][0], port, name


def run(
    address, requests, *, path="/yikatong.v1.TapService/AuthorizeTap", connections=16, streams=8, rate=None, exponential=False,
    seed=1, seconds=None, drain_s=10.0, connect_s=5.0, check="taps", charged_fen=None, repeat=False, resend=False,
    grpc_timeout_s=None, tls=None, ca=None, certificate=None, key=None, server_name=None, tick_us=50, progress=None,
):  # fmt: skip
    """Send serialised requests (see `pack`) to one unary method and return a `Result`. The GIL is released meanwhile.

    Closed loop unless `rate` is given: each of `connections` × `streams` sends its next request when its last is answered. With
    `rate` (requests a second; with `exponential`, at random gaps drawn from `seed`) each request has a time when it is due: it
    is sent then, on the connection with the fewest open streams, and its latency counts from then, also while it must wait for
    one of the `streams` of a connection. What is due within `tick_us` is sent together.

    The run ends when all are answered. After `seconds` nothing more is sent, and what was due and still waits counts as
    unsent; `drain_s` after the last was sent, or without any answer, the run ends as it stands. `repeat` begins again after
    the last request, for requests that may be repeated.

    `check` "taps" wants every tap ACCEPTED, none a duplicate, each charged `charged_fen` if given; "any" wants grpc-status 0. A
    lost connection is made again, for `connect_s` at most; what was open on it counts as failed, or is sent again with `resend`,
    and may then be a duplicate.

    TLS 1.3 is spoken when `tls` is true or any file (PEM) is given; the server is verified when `ca` is.
    `progress(done, total)` is called about ten times a second: answers of requests, or milliseconds of `seconds`.

    Raises LoadFailed when the run cannot begin, ValueError for arguments that make no sense."""
    if check not in ("taps", "any"):
        raise ValueError('check: "taps" or "any" is wanted')
    if not (1 <= connections <= 100_000 and 1 <= streams <= 100_000 and connections * streams <= 10_000_000):
        raise ValueError("connections, streams: 1 to 100,000 each and 10,000,000 in all are wanted")
    if rate is not None and not 0 < rate < 1e9:
        raise ValueError("rate: above 0 is wanted")
    if repeat and seconds is None:
        raise ValueError("seconds: are wanted where requests are repeated")
    if (certificate is None) != (key is None):
        raise ValueError("certificate, key: one is of no use without the other")
    host, port, name = resolve(address)
    buffer, offsets = pack(requests)
    texts = (host, port, address, path, server_name or name, ca, certificate, key)
    encoded = [None if text is None else str(text).encode() for text in texts]
    cdef const uint8_t[::1] buffer_view = buffer if len(buffer) else np.zeros(1, np.uint8)
    cdef const int64_t[::1] offsets_view = offsets
    cdef yk_load_config config
    config.host, config.port, config.authority = encoded[0], encoded[1], encoded[2]
    config.path, config.server_name = encoded[3], encoded[4]
    config.ca = config.certificate = config.key = NULL
    if ca is not None:
        config.ca = encoded[5]
    if certificate is not None:
        config.certificate, config.key = encoded[6], encoded[7]
    config.tls = bool(tls) if tls is not None else ca is not None or certificate is not None
    config.connections = connections
    config.streams = streams
    config.rate = rate or 0
    config.exponential = bool(exponential and rate)
    config.seed = seed
    config.tick_ns = int(tick_us * 1000)
    config.requests = &buffer_view[0]
    config.offsets = &offsets_view[0]
    config.n = len(offsets) - 1
    config.repeat = bool(repeat)
    config.seconds_ns = 0 if seconds is None else max(int(seconds * 1e9), 1)
    config.drain_ns = int(drain_s * 1e9)
    config.connect_ns = int(connect_s * 1e9)
    config.timeout_ms = 0 if grpc_timeout_s is None else max(int(grpc_timeout_s * 1000), 1)
    config.check = YK_LOAD_TAPS if check == "taps" else YK_LOAD_ANY
    config.charged_fen = -1 if charged_fen is None else charged_fen
    config.resend = bool(resend)

    cdef yk_load *load = yk_load_new(&config)
    if load == NULL:
        raise MemoryError("no memory or file descriptors for so many connections and streams")
    cdef yk_load_result *result = yk_load_result_of(load)
    cdef int more = 1
    try:
        while more:
            with nogil:
                more = yk_load_run(load, YK_LOAD_SLOT_NS)
            PyErr_CheckSignals()
            if progress is not None and result.start_ns:
                if seconds is None:
                    progress(result.ok + result.refused + result.wrong + result.failed, len(offsets) - 1)
                else:
                    progress(min(result.slots_n * 100, int(seconds * 1000)), int(seconds * 1000))
        if progress is not None and seconds is not None:
            progress(int(seconds * 1000), int(seconds * 1000))
        if result.start_ns == 0:
            raise LoadFailed(f"{address}: {result.error.decode(errors='replace')}")
        return collect(result)
    finally:
        yk_load_free(load)


cdef object collect(yk_load_result *r):
    series = np.zeros(r.slots_n, SERIES)
    cdef uint64_t[:, ::1] rows = series.view(np.uint64).reshape(-1, 6)
    cdef uint32_t i
    for i in range(r.slots_n):
        rows[i, 0], rows[i, 1], rows[i, 2] = r.slots[i].sent, r.slots[i].ok, r.slots[i].refused
        rows[i, 3], rows[i, 4], rows[i, 5] = r.slots[i].wrong, r.slots[i].failed, r.slots[i].max_ns
    return Result(
        sent=r.sent, ok=r.ok, refused=r.refused, wrong=r.wrong, failed=r.failed, unanswered=r.unanswered, unsent=r.unsent,
        resent=r.resent, reconnects=r.reconnects, taps=r.taps, elapsed_s=(r.end_ns - r.start_ns) / 1e9,
        statuses=np.asarray(<uint64_t[:17]>r.statuses).astype(np.int64),
        results=np.asarray(<uint64_t[:YK_LOAD_RESULTS]>r.results).astype(np.int64),
        latency=copy_histogram(&r.latency), refused_latency=copy_histogram(&r.refused_latency), lag=copy_histogram(&r.lag),
        series=series,
        first_wrong=r.first_wrong.decode(errors="replace"), first_lost=r.first_lost.decode(errors="replace"),
        error=r.error.decode(errors="replace"),
    )  # fmt: skip
