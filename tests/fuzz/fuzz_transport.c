/* libFuzzer target: the server's side of HTTP/2 (ext/grpc_server.c) under two hostile peers that share a server.
 *
 * The input is a script. Its first byte chooses which peers have spoken the preface and how tight the limits are; then come
 * steps: bytes for a peer (whole or in pieces), answers and failures to requests that were handed over, time, drains, closes.
 * The bounds of yk_server_limits must hold after each step, and when all is closed and answered nothing may be left. */
#include "../../ext/grpc_server.h"

#include <stdlib.h>
#include <string.h>

enum { PEERS = 2, HELD_MAX = 512, PIECES_MAX = 256 };
enum { FEED, FEED_IN_PIECES, ANSWER, FAIL, TICK, DRAIN, CLOSE, SEND, STEPS };

typedef struct {
    const uint8_t *at, *end;
} script;

typedef struct {
    yk_server server;
    yk_connection *peers[PEERS];
    yk_call *held[HELD_MAX]; /* handed over and not answered */
    unsigned held_count;
    uint64_t now_us;
    uint8_t greet;
} world;

static void demand(int holds) {
    if (!holds) abort();
}

static unsigned next_byte(script *s) { return s->at < s->end ? *s->at++ : 0; }

static const uint8_t *next_bytes(script *s, size_t *n) {
    *n = next_byte(s);
    *n |= (size_t)next_byte(s) << 8;
    if (*n > (size_t)(s->end - s->at)) *n = (size_t)(s->end - s->at);
    const uint8_t *bytes = s->at;
    s->at += *n;
    return bytes;
}

static void take_ready(world *w) {
    for (uint32_t i = 0; i < w->server.ready_count; i++) {
        yk_call *call = w->server.ready[i];
        demand(call->taken && call->method < w->server.methods && call->message_bytes <= w->server.limits.message_bytes_max);
        unsigned sum = 0;
        for (uint32_t at = 0; at < call->message_bytes; at++) sum += call->message[at]; /* all of it must be readable */
        demand(w->held_count < HELD_MAX && sum <= 255u * call->message_bytes);
        w->held[w->held_count++] = call;
    }
    w->server.ready_count = 0;
}

static void check_bounds(const world *w) {
    const yk_server_counts *counts = &w->server.counts;
    demand(counts->calls_in_flight == w->held_count && w->held_count <= w->server.limits.calls_max);
    demand(counts->buffered_bytes <= w->server.limits.buffered_bytes_max);
    for (int i = 0; i < PEERS; i++)
        if (w->peers[i]) demand(w->peers[i]->call_count <= w->server.limits.streams_max + 1);
}

static void close_peer(world *w, int peer) {
    if (!w->peers[peer]) return;
    take_ready(w);
    yk_connection_close(w->peers[peer]);
    w->peers[peer] = NULL;
}

/* Take what the peer is sent; a connection that is done is closed, as ext/transport.pyx does. */
static void send_all(world *w, int peer) {
    static uint8_t out[1 << 17];
    while (w->peers[peer]) {
        int64_t n = yk_connection_send(w->peers[peer], out, sizeof out);
        if (n < 0 || yk_connection_done(w->peers[peer])) {
            close_peer(w, peer);
            return;
        }
        if ((size_t)n < sizeof out / 2) return;
    }
}

static void feed(world *w, int peer, const uint8_t *bytes, size_t n) {
    if (!w->peers[peer]) return;
    uint8_t *copy = malloc(n ? n : 1); /* reading past the end of a piece must be seen */
    if (!copy) return;
    if (n) memcpy(copy, bytes, n);
    int error = yk_connection_receive(w->peers[peer], copy, n, w->now_us);
    free(copy);
    take_ready(w);
    if (!error) return;
    send_all(w, peer);
    close_peer(w, peer);
}

static void open_peer(world *w, int peer) {
    static const uint8_t greeting[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0";
    w->peers[peer] = yk_connection_open(&w->server, NULL, w->now_us);
    if (w->greet >> peer & 1) feed(w, peer, greeting, sizeof greeting); /* with SETTINGS' last zero from the literal's end */
}

/* The call at `place` among those held leaves them. */
static yk_call *let_go(world *w, unsigned place) {
    place %= w->held_count;
    yk_call *call = w->held[place];
    w->held[place] = w->held[--w->held_count];
    return call;
}

static void step(world *w, script *s) {
    static const uint8_t zeros[1 << 16];
    unsigned code = next_byte(s), kind = code % STEPS;
    int peer = code / STEPS % PEERS;
    size_t n;
    const uint8_t *bytes;
    switch (kind) {
    case FEED:
        bytes = next_bytes(s, &n);
        feed(w, peer, bytes, n);
        if (code & 0x80) send_all(w, peer);
        break;
    case FEED_IN_PIECES: {
        size_t piece = 1 + next_byte(s);
        bytes = next_bytes(s, &n);
        if (n / piece >= PIECES_MAX) piece = n / PIECES_MAX + 1;
        for (size_t at = 0; at < n; at += piece) feed(w, peer, bytes + at, n - at < piece ? n - at : piece);
        break;
    }
    case ANSWER: {
        unsigned place = next_byte(s), size = next_byte(s);
        if (w->held_count) yk_call_answer(&w->server, let_go(w, place), zeros, size * size);
        break;
    }
    case FAIL: {
        unsigned place = next_byte(s), status = next_byte(s);
        bytes = next_bytes(s, &n);
        if (n > 64) n = 64;
        if (w->held_count)
            yk_call_fail(&w->server, let_go(w, place), (int)(status % 17), (const char *)bytes, n, bytes, status & 0x80 ? n : 0);
        break;
    }
    case TICK: {
        unsigned tenths = next_byte(s);
        w->now_us += (uint64_t)tenths * tenths * 10000;
        for (int i = 0; i < PEERS; i++)
            if (w->peers[i] && yk_connection_tick(w->peers[i], w->now_us) != 0) close_peer(w, i);
        break;
    }
    case DRAIN:
        if (w->peers[peer]) yk_connection_drain(w->peers[peer], w->now_us);
        break;
    case CLOSE:
        close_peer(w, peer);
        open_peer(w, peer);
        break;
    case SEND: send_all(w, peer); break;
    default: break;
    }
    check_bounds(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    static const yk_server_limits tight = {
        .message_bytes_max = 1000, .buffered_bytes_max = 3000, .connection_bytes_max = 2000, .calls_max = 4, .streams_max = 3,
        .header_bytes_max = 400, .control_frames_max = 20, .resets_max = 4, .request_us_max = 3000000,
        .response_us_max = 6000000, .idle_us_max = 30000000, .age_us_max = 60000000, .age_grace_us = 5000000,
        .preface_us_max = 2000000,
    };
    static const yk_server_limits wide = {
        .message_bytes_max = 1 << 16, .buffered_bytes_max = 1 << 20, .connection_bytes_max = 1 << 19, .calls_max = HELD_MAX,
        .streams_max = 256, .header_bytes_max = 16384, .control_frames_max = 2000, .resets_max = 500,
        .request_us_max = 30000000, .response_us_max = 60000000, .idle_us_max = 300000000, .age_us_max = 0,
        .age_grace_us = 10000000, .preface_us_max = 10000000,
    };
    world *w = calloc(1, sizeof *w);
    if (!w) return 0;
    script s = {bytes, bytes + n};
    unsigned flags = next_byte(&s);
    w->greet = flags & 3;
    w->now_us = 1000000;
    demand(yk_server_init(&w->server, flags & 4 ? &tight : &wide) == 0);
    w->server.unimplemented = "not here";
    w->server.overload_details = (const uint8_t *)"AAAA";
    w->server.overload_details_bytes = 4;
    demand(yk_server_add_method(&w->server, "/yikatong.v1.TapService/AuthorizeTap") == 0);
    demand(yk_server_add_method(&w->server, "/yikatong.v1.TapService/SubmitTaps") == 1);
    for (int i = 0; i < PEERS; i++) open_peer(w, i);
    while (s.at < s.end) step(w, &s);

    /* Half of what is held is answered before the connections go, the other half finds nobody. */
    for (unsigned half = w->held_count / 2; w->held_count > half;) yk_call_answer(&w->server, let_go(w, 0), bytes, 1);
    for (int i = 0; i < PEERS; i++) send_all(w, i);
    check_bounds(w);
    for (int i = 0; i < PEERS; i++) close_peer(w, i);
    while (w->held_count) yk_call_fail(&w->server, let_go(w, 0), 14, "gone", 4, NULL, 0);
    demand(w->server.counts.calls_in_flight == 0 && w->server.counts.buffered_bytes == 0);
    demand(w->server.counts.connections_open == 0);
    yk_server_free(&w->server);
    free(w);
    return 0;
}
