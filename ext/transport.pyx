# cython: boundscheck=False, wraparound=False
"""gRPC over HTTP/2 for native methods: connections of an event loop (uvloop's sockets, ssl's TLS) on grpc_server.h.

All requests that came in over all connections in one turn of the loop are handed on together. Everything here is called on the
loop's thread."""

import time

import numpy as np

cimport numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from yikatong.ext.engine cimport Calls

np.import_array()

cdef extern from "grpc_server.h":
    ctypedef struct yk_server_limits:
        uint32_t message_bytes_max
        uint64_t buffered_bytes_max
        uint64_t connection_bytes_max
        uint32_t calls_max
        uint32_t streams_max
        uint32_t header_bytes_max
        uint32_t control_frames_max
        uint32_t resets_max
        uint32_t request_us_max
        uint32_t response_us_max
        uint64_t idle_us_max
        uint64_t age_us_max
        uint64_t age_grace_us
        uint64_t preface_us_max
    ctypedef struct yk_connection:
        void *owner
        uint8_t dirty
        uint8_t abusive
        uint32_t call_count
        uint64_t bound
        uint32_t forbidden
    ctypedef struct yk_call:
        yk_connection *connection
        const uint8_t *message
        uint32_t message_bytes
        uint16_t method
        uint64_t deadline_us
        uint64_t completed_us
        uint64_t bound
        uint8_t forbidden
    ctypedef struct yk_server_counts:
        uint64_t connections_opened, connections_open, connections_refused, connections_closed_for_abuse
        uint64_t calls_in_flight, buffered_bytes
        uint64_t resets, refused_overload
    ctypedef struct yk_server:
        yk_server_limits limits
        const char *unimplemented
        yk_call **ready
        uint32_t ready_count
        yk_server_counts counts
        const uint8_t *overload_details
        size_t overload_details_bytes
        uint64_t now_us
        uint16_t methods
        uint64_t refused[17][17]
    enum: YK_METHODS_MAX
    int yk_server_init(yk_server *server, const yk_server_limits *limits) nogil
    void yk_server_free(yk_server *server) nogil
    int yk_server_add_method(yk_server *server, const char *path) nogil
    yk_connection *yk_connection_open(yk_server *server, void *owner, uint64_t now_us) nogil
    void yk_connection_close(yk_connection *connection) nogil
    int yk_connection_receive(yk_connection *connection, const uint8_t *bytes, size_t n, uint64_t now_us) nogil
    int64_t yk_connection_send(yk_connection *connection, uint8_t *out, size_t room) nogil
    int yk_connection_done(const yk_connection *connection) nogil
    int yk_connection_tick(yk_connection *connection, uint64_t now_us) nogil
    void yk_connection_drain(yk_connection *connection, uint64_t now_us) nogil
    void yk_call_answer(yk_server *server, yk_call *call, const uint8_t *message, uint32_t n) nogil
    void yk_call_fail(yk_server *server, yk_call *call, int code, const char *message, size_t message_bytes,
                      const uint8_t *details, size_t details_bytes) nogil

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *out)
    int CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID

cdef enum:
    RECEIVE_BYTES = 1 << 16     # libuv reads up to 32 of them from one socket before it turns to the next
    SEND_BYTES = 1 << 17
    NOGIL_BYTES = 1 << 14
    ANSWERS_A_TURN = 256      # answered before the loop gets another turn: less than a millisecond
    AUTHORIZE, SUBMIT, OTHER

LANE_AUTHORIZE = AUTHORIZE
LANE_SUBMIT = SUBMIT


cdef uint64_t monotonic_us() noexcept nogil:
    """As time.monotonic(), in microseconds."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000 + <uint64_t>now.tv_nsec // 1000


cdef uint64_t thread_us() noexcept nogil:
    """What this thread has worked, in microseconds: waiting for a processor or for the GIL does not count."""
    cdef timespec now
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
    return <uint64_t>now.tv_sec * 1000000 + <uint64_t>now.tv_nsec // 1000


class Peer:
    """Who is at the other end of a connection: `caller` (anything), `bound` (whose taps it may bring: engine.pyx) and `failures`, a
    Failure for each method, by its number, that it may not call. From `ends_s` on (time.time's) it must be asked for anew."""

    __slots__ = ("bound", "caller", "ends_s", "failures")

    def __init__(self, caller, bound=0, failures=None, ends_s=float("inf")):
        self.caller, self.bound, self.failures, self.ends_s = caller, bound, failures or {}, ends_s


class Failure:
    """How a call is ended without a response: gRPC code, message (text), and google.rpc.Status as bytes."""

    __slots__ = ("code", "details", "message")

    def __init__(self, code, message, details):
        from base64 import b64encode
        from urllib.parse import quote

        self.code = code
        # Percent-encoding of gRPC over HTTP/2: printable ASCII but % stays (PROTOCOL-HTTP2, "Status-Message").
        self.message = quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode("ascii")
        self.details = b64encode(details).rstrip(b"=")


cdef class Call:
    """One call of a method that is not a tap lane's."""

    cdef yk_call *call
    cdef readonly Transport transport
    cdef readonly uint32_t method
    cdef readonly bytes message
    cdef readonly object caller        # of the Peer

    @property
    def deadline(self):
        """time.monotonic() after which nobody waits; None: never."""
        return self.call.deadline_us / 1e6 if self.call.deadline_us else None

    def answer(self, bytes response not None):
        """End the call with a response; once."""
        self._end(response, None)

    def fail(self, failure not None):
        """End the call with a Failure; once."""
        self._end(None, failure)

    cdef _end(self, bytes response, failure):
        cdef yk_call *call = self.call
        if call == NULL:
            raise RuntimeError("the call was already ended")
        self.call = NULL
        cdef Connection owner = <Connection>call.connection.owner if call.connection else None
        self.transport.server.now_us = monotonic_us()
        seconds = (self.transport.server.now_us - call.completed_us) / 1e6
        if failure is None:
            yk_call_answer(&self.transport.server, call, <const uint8_t *>PyBytes_AS_STRING(response), PyBytes_GET_SIZE(response))
            self.transport.on_handled(self.method, 0, [seconds])
        else:
            _fail(&self.transport.server, call, failure)
            self.transport.on_handled(self.method, failure.code, [seconds])
        if owner is not None:
            owner.flush()


cdef _fail(yk_server *server, yk_call *call, failure):
    cdef bytes message = failure.message, details = failure.details
    yk_call_fail(server, call, failure.code, PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message),
                 <const uint8_t *>PyBytes_AS_STRING(details), PyBytes_GET_SIZE(details))


cdef class Connection:
    """One peer, as an asyncio BufferedProtocol."""

    cdef yk_connection *connection
    cdef Transport owner
    cdef object socket
    cdef object peer
    cdef double peer_ends_s
    cdef bint paused

    def __cinit__(self, Transport owner):
        self.owner = owner

    def connection_made(self, socket):
        cdef Transport owner = self.owner
        self.socket = socket
        ssl = socket.get_extra_info("ssl_object")
        if len(owner.connections) >= owner.connections_max or (ssl is not None and ssl.selected_alpn_protocol() != "h2"):
            owner.server.counts.connections_refused += 1
            socket.abort()
            return
        self.connection = yk_connection_open(&owner.server, <void *>self, monotonic_us())
        if self.connection == NULL:
            socket.abort()
            return
        socket.set_write_buffer_limits(high=1 << 18)
        owner.connections.add(self)
        self.identify()
        if owner.draining:
            yk_connection_drain(self.connection, monotonic_us())
        self.flush()

    cdef identify(self):
        """Ask who is there. Until it is known nothing may be called."""
        cdef uint32_t forbidden = 0
        if self.connection == NULL or self.owner.identify is None:
            return
        self.connection.forbidden = <uint32_t>-1
        peer = self.owner.identify(self.socket)
        for method in peer.failures:
            forbidden |= <uint32_t>1 << <int>method
        self.peer, self.peer_ends_s = peer, peer.ends_s
        self.connection.bound = peer.bound
        self.connection.forbidden = forbidden

    def get_buffer(self, hint):
        return self.owner.receive_view

    def buffer_updated(self, Py_ssize_t n):
        cdef Transport owner = self.owner
        cdef int error
        cdef uint64_t begun_us = thread_us()
        if self.connection == NULL:
            return
        if n < NOGIL_BYTES:
            # For a few microseconds the GIL is not given away: another thread would keep it for longer than this takes.
            error = yk_connection_receive(self.connection, owner.receive_buffer, n, monotonic_us())
        else:
            with nogil:
                error = yk_connection_receive(self.connection, owner.receive_buffer, n, monotonic_us())
        self.flush()
        if error and self.socket is not None:
            self.socket.close()
        if owner.server.ready_count and not owner.handing_on:
            owner.handing_on = True
            owner.loop.call_soon(owner.hand_on)
        owner.turned(begun_us)

    def eof_received(self):
        return False

    def connection_lost(self, error):
        self.owner.connections.discard(self)
        self.socket = None
        if self.connection != NULL:
            yk_connection_close(self.connection)
            self.connection = NULL

    def pause_writing(self):
        # Who does not take answers gets to ask no more.
        self.paused = True
        self.socket.pause_reading()

    def resume_writing(self):
        self.paused = False
        self.socket.resume_reading()
        self.flush()

    cdef flush(self):
        """Send what there is, until the peer takes no more."""
        cdef int64_t n
        cdef Transport owner = self.owner
        while self.connection != NULL and not self.paused and self.socket is not None:
            n = yk_connection_send(self.connection, owner.send_buffer, SEND_BYTES)
            if n < 0:
                self.socket.abort()
                return
            if n:
                self.socket.write(PyBytes_FromStringAndSize(<const char *>owner.send_buffer, n))
            if n < SEND_BYTES // 2:
                break
        if self.connection != NULL and self.socket is not None and yk_connection_done(self.connection):
            self.socket.close()

    cdef tick(self, uint64_t now_us):
        if self.connection == NULL:
            return
        if yk_connection_tick(self.connection, now_us) != 0:
            self.socket.abort()
        else:
            self.flush()

    cdef drain(self, uint64_t now_us):
        if self.connection != NULL:
            yk_connection_drain(self.connection, now_us)
            self.flush()


cdef class Transport:
    """All connections of one port. `limits` has the names of yk_server_limits and `connections_max`.

    `on_calls(Calls)` gets batches of the tap lanes, `on_call(Call)` the others; `on_handled(method, code, seconds)` is told of
    every call that was ended (a sequence of seconds each), with the number that `register` gave. `identify(socket)` gives the
    Peer of a new connection, and of all when `identify_again` is called; without it everybody may call everything."""

    cdef yk_server server
    cdef object loop, on_calls, on_call, on_handled, identify, receive_memory
    cdef readonly object receive_view
    cdef uint8_t *receive_buffer
    cdef uint8_t *send_buffer
    cdef set connections
    cdef readonly uint32_t connections_max
    cdef bint handing_on, draining
    cdef list lanes
    cdef bytes unimplemented, overload
    cdef object gone                   # nobody hears it: a Failure for calls whose peer has gone
    cdef uint64_t longest_turn_us      # since it was last asked for

    def __cinit__(self, loop, dict limits, on_calls, on_call, on_handled, unimplemented, overload, identify=None):
        cdef yk_server_limits bounds
        memset(&bounds, 0, sizeof(bounds))
        bounds.message_bytes_max = limits["message_bytes_max"]
        bounds.buffered_bytes_max = limits["buffered_bytes_max"]
        bounds.connection_bytes_max = limits["connection_bytes_max"]
        bounds.calls_max = limits["calls_max"]
        bounds.streams_max = limits["streams_max"]
        bounds.header_bytes_max = limits["header_bytes_max"]
        bounds.control_frames_max = limits["control_frames_max"]
        bounds.resets_max = limits["resets_max"]
        bounds.request_us_max = limits["request_us_max"]
        bounds.response_us_max = limits["response_us_max"]
        bounds.idle_us_max = limits["idle_us_max"]
        bounds.age_us_max = limits["age_us_max"]
        bounds.age_grace_us = limits["age_grace_us"]
        bounds.preface_us_max = limits["preface_us_max"]
        if yk_server_init(&self.server, &bounds) != 0:
            raise MemoryError
        self.connections_max = limits["connections_max"]
        self.loop, self.on_calls, self.on_call, self.on_handled = loop, on_calls, on_call, on_handled
        self.identify = identify
        self.connections = set()
        self.lanes = []
        self.receive_memory = bytearray(RECEIVE_BYTES)
        self.receive_view = memoryview(self.receive_memory)
        cdef uint8_t[::1] view = self.receive_memory
        self.receive_buffer = &view[0]
        self.send_buffer = <uint8_t *>malloc(SEND_BYTES)
        if not self.send_buffer:
            raise MemoryError
        self.unimplemented = unimplemented.message
        self.server.unimplemented = PyBytes_AS_STRING(self.unimplemented)
        self.overload = overload.details
        self.gone = overload
        self.server.overload_details = <const uint8_t *>PyBytes_AS_STRING(self.overload)
        self.server.overload_details_bytes = PyBytes_GET_SIZE(self.overload)

    def __dealloc__(self):
        yk_server_free(&self.server)
        free(self.send_buffer)

    def register(self, str path, int lane=OTHER):
        """Serve "/package.Service/Method"; returns its number."""
        cdef bytes raw = path.encode("ascii")
        number = yk_server_add_method(&self.server, raw)
        if number < 0:
            raise ValueError(f"{path}: too long, or too many methods")
        self.lanes.append(lane)
        return number

    def protocol(self):
        """A new connection's protocol: the factory for loop.create_server."""
        return Connection(self)

    cdef void turned(self, uint64_t begun_us) noexcept:
        """Work on the loop that began at `begun_us` (thread_us) is over."""
        cdef uint64_t took_us = thread_us() - begun_us
        if took_us > self.longest_turn_us:
            self.longest_turn_us = took_us

    def hand_on(self):
        """Hand on all requests that have come in."""
        cdef uint64_t begun_us = thread_us()
        cdef uint32_t count = self.server.ready_count, i, authorized = 0
        cdef yk_call *call
        cdef Calls calls
        cdef Call other
        self.handing_on = False
        self.server.ready_count = 0
        lanes = self.lanes
        others = []
        handed = []
        for i in range(count):
            if lanes[self.server.ready[i].method] == AUTHORIZE and not self.server.ready[i].forbidden:
                authorized += 1
        calls = Calls(authorized, False) if authorized else None
        authorized = 0
        for i in range(count):
            call = self.server.ready[i]
            lane = lanes[call.method]
            if call.forbidden:
                self.forbid(call)
            elif lane == AUTHORIZE:
                _add(calls, authorized, call)
                authorized += 1
            elif lane == SUBMIT:
                submitted = Calls(1, True)
                _add(submitted, 0, call)
                handed.append(submitted)
            else:
                other = Call()
                other.call, other.transport, other.method = call, self, call.method
                if call.connection != NULL and (<Connection>call.connection.owner).peer is not None:
                    other.caller = (<Connection>call.connection.owner).peer.caller
                other.message = PyBytes_FromStringAndSize(<const char *>call.message, call.message_bytes)
                others.append(other)
        if calls is not None:
            self.on_calls(calls)
        for submitted in handed:
            self.on_calls(submitted)
        for waiting in others:
            self.on_call(waiting)
        self.turned(begun_us)

    cdef forbid(self, yk_call *call):
        """End a call that its peer may not make."""
        cdef Connection owner = <Connection>call.connection.owner if call.connection else None
        cdef uint16_t method = call.method
        failure = self.gone
        if owner is not None and owner.peer is not None:
            failure = owner.peer.failures.get(method, failure)
        self.server.refused[method][<int>failure.code] += 1
        self.server.now_us = monotonic_us()
        _fail(&self.server, call, failure)
        if owner is not None:
            owner.flush()

    def method_of(self, Calls calls not None):
        """Number of the method that a batch was for."""
        return (<yk_call *>calls.handles[0]).method

    def answer(self, Calls calls not None, failures, failure=None, uint32_t start=0):
        """Answer a batch: `failure` for all of it, or its responses and `failures`, a Failure by decode error."""
        cdef uint32_t i, end = min(calls.n, start + ANSWERS_A_TURN), touched = 0, answered = 0
        cdef uint64_t response_start
        cdef yk_call *call
        cdef void **owners = <void **>malloc((end - start) * sizeof(void *))
        if not owners:
            raise MemoryError
        seconds = np.empty(end - start, np.float64)
        cdef double[::1] out = seconds
        cdef uint16_t method = (<yk_call *>calls.handles[start]).method
        failed = []
        cdef uint64_t begun_us = thread_us()
        cdef yk_server *server = &self.server
        cdef bint all_fail = failure is not None
        with nogil:
            server.now_us = monotonic_us()
            for i in range(start, end):
                call = <yk_call *>calls.handles[i]
                if call.connection and not call.connection.dirty:
                    call.connection.dirty = 1
                    owners[touched] = call.connection.owner
                    touched += 1
                if all_fail or calls.counts[i] <= 0:
                    with gil:
                        seconds_one = (server.now_us - call.completed_us) / 1e6
                        reason = failure if all_fail else failures[calls.counts[i]]
                        failed.append((reason.code, seconds_one))
                        _fail(server, call, reason)
                    continue
                out[answered] = <double>(server.now_us - call.completed_us) / 1e6
                answered += 1
                response_start = calls.response_ends[i - 1] if i else 0
                yk_call_answer(server, call, calls.responses + response_start, <uint32_t>(calls.response_ends[i] - response_start))
        held = [<Connection>owners[i] for i in range(touched)]
        free(owners)
        for connection in held:
            (<Connection>connection).flush()
        if answered:
            self.on_handled(method, 0, seconds[:answered])
        for code, seconds_one in failed:
            self.on_handled(method, code, [seconds_one])
        if end < calls.n:
            self.loop.call_soon(self.answer, calls, failures, failure, end)
        self.turned(begun_us)

    def tick(self, double now_s=0):
        """Once a second: time limits, and what a connection earns back. `now_s` (time.monotonic's) only for tests."""
        cdef uint64_t now_us = <uint64_t>(now_s * 1e6) if now_s else monotonic_us()
        cdef double wall_s = time.time()
        for connection in list(self.connections):
            if self.identify is not None and wall_s >= (<Connection>connection).peer_ends_s:
                (<Connection>connection).identify()
            (<Connection>connection).tick(now_us)

    def take_refused(self):
        """Calls that were ended in the transport since the last call of this: (method number or -1, code, how many)."""
        cdef int method, code
        taken = []
        for method in range(YK_METHODS_MAX + 1):
            for code in range(17):
                if self.server.refused[method][code]:
                    taken.append((method if method < YK_METHODS_MAX else -1, code, self.server.refused[method][code]))
                    self.server.refused[method][code] = 0
        return taken

    def identify_again(self):
        """Ask anew who is at the other end of each connection."""
        for connection in list(self.connections):
            (<Connection>connection).identify()

    def drain(self):
        """Begin an orderly end: GOAWAY to all, and to whoever comes yet."""
        self.draining = True
        for connection in list(self.connections):
            (<Connection>connection).drain(monotonic_us())

    def abort(self):
        """Close what is still open."""
        for connection in list(self.connections):
            if (<Connection>connection).socket is not None:
                (<Connection>connection).socket.abort()

    @property
    def open_connections(self):
        return len(self.connections)

    def take_longest_turn(self):
        """Seconds that the transport worked on the loop at a time, at most, since the last call of this."""
        longest = self.longest_turn_us / 1e6
        self.longest_turn_us = 0
        return longest

    def counts(self):
        """What happened so far: a dict of yk_server_counts."""
        counts = self.server.counts
        return {
            "connections_opened": counts.connections_opened, "connections_open": counts.connections_open,
            "connections_refused": counts.connections_refused,
            "connections_closed_for_abuse": counts.connections_closed_for_abuse,
            "calls_in_flight": counts.calls_in_flight, "buffered_bytes": counts.buffered_bytes,
            "resets": counts.resets, "refused_overload": counts.refused_overload,
        }


cdef void _add(Calls calls, uint32_t at, yk_call *call) noexcept:
    calls.messages[at] = call.message
    calls.lengths[at] = call.message_bytes
    calls.deadlines_us[at] = call.deadline_us
    calls.handles[at] = call
    calls.bounds[at] = call.bound
    calls.bytes += call.message_bytes
