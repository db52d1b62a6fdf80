/* A gRPC server's side of HTTP/2, without sockets: bytes of a connection in, complete requests out; answers in, bytes out.
 *
 * Frames, HPACK and flow control are nghttp2's; gRPC's framing, headers and trailers are here. One thread. Nothing here does I/O
 * or reads a clock: `now_us` (monotonic microseconds) comes with each call. Whatever a peer can make grow is bounded by
 * yk_server_limits; who passes a bound is told off (RESOURCE_EXHAUSTED, a reset) or sent away (GOAWAY, close). */
#ifndef YK_GRPC_SERVER_H
#define YK_GRPC_SERVER_H

#include <nghttp2/nghttp2.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t message_bytes_max;       /* of one request */
    uint64_t buffered_bytes_max;      /* of requests, complete or not, and of answers not taken yet, over all connections */
    uint64_t connection_bytes_max;    /* the same, of one connection, before it is refused more requests */
    uint32_t calls_max;               /* complete and not answered, over all connections */
    uint32_t streams_max;             /* open at a time on one connection */
    uint32_t header_bytes_max;        /* of one request's header list, as HPACK counts it */
    uint32_t control_frames_max;      /* frames that bring no request on, before some are earned back */
    uint32_t resets_max;              /* streams that the peer reset, before some are earned back */
    uint32_t request_us_max;          /* from a request's first header to its last byte */
    uint32_t response_us_max;         /* from an answer to its last byte taken by the peer */
    uint64_t idle_us_max;             /* a connection without a stream */
    uint64_t age_us_max;              /* a connection; 0: any */
    uint64_t age_grace_us;            /* for streams that are open when it has come of age */
    uint64_t preface_us_max;          /* until the peer has spoken HTTP/2 */
} yk_server_limits;

enum { YK_METHODS_MAX = 16, YK_PATH_BYTES_MAX = 96, YK_CALL_INLINE_BYTES = 320 };

typedef struct yk_server yk_server;
typedef struct yk_connection yk_connection;

/* One request and its answer. */
typedef struct yk_call {
    yk_connection *connection;       /* NULL: the peer has gone, or has cancelled; nobody waits for an answer */
    struct yk_call *previous, *next; /* among the connection's */
    const uint8_t *message;          /* the request, unframed */
    uint32_t message_bytes;
    int32_t stream_id;
    uint16_t method;
    uint8_t taken;                   /* it was handed over, and will be answered */
    uint8_t state;
    const char *refusal;             /* grpc-message of an answer that is still to leave */
    const char *http_status;         /* or an HTTP status instead */
    uint32_t discarded_bytes;        /* that came after it was refused */
    uint8_t content_type_seen, is_post, encoding_refused;
    uint8_t status;                  /* gRPC code of the answer */
    uint64_t deadline_us;            /* 0: none */
    uint64_t begun_us, completed_us;
    uint32_t header_bytes;
    uint32_t timeout_bad;
    uint64_t bound;                  /* of its connection when it was complete */
    uint8_t forbidden;               /* likewise, for its method */
    uint8_t *body;                   /* 5 bytes of frame and the message: inline_body, or allocated */
    uint32_t body_bytes, body_capacity;
    uint8_t *answer;                 /* framed; inline_answer, or allocated */
    uint32_t answer_bytes, answer_sent;
    uint8_t inline_body[YK_CALL_INLINE_BYTES];
    uint8_t inline_answer[64];
} yk_call;

/* What happened, for the metrics; counted since the start. */
typedef struct {
    uint64_t connections_opened, connections_open, connections_refused, connections_closed_for_abuse;
    uint64_t calls_in_flight, buffered_bytes;
    uint64_t resets, refused_overload;
} yk_server_counts;

struct yk_server {
    yk_server_limits limits;
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    char paths[YK_METHODS_MAX][YK_PATH_BYTES_MAX];
    uint16_t path_bytes[YK_METHODS_MAX];
    uint16_t methods;
    const char *unimplemented; /* grpc-message for any other path */
    yk_call **ready;           /* complete requests since the last take */
    uint32_t ready_count, ready_capacity;
    yk_call *spare;            /* calls to be used again */
    uint32_t spare_count;
    yk_server_counts counts;
    const uint8_t *overload_details; /* google.rpc.Status with RetryInfo, base64, for RESOURCE_EXHAUSTED */
    size_t overload_details_bytes;
    uint64_t now_us;
    /* Calls that ended without having been handed over, by method (the last: unknown path) and gRPC code. */
    uint64_t refused[YK_METHODS_MAX + 1][17];
};

struct yk_connection {
    yk_server *server;
    nghttp2_session *session;
    void *owner;               /* whoever moves its bytes */
    yk_call *calls;            /* open streams' */
    uint32_t call_count;
    uint64_t held_bytes;       /* its part of buffered_bytes */
    int32_t control_credit, reset_credit;
    uint64_t born_us, heard_us, idle_since_us;
    uint8_t greeted;           /* it has spoken HTTP/2 */
    uint8_t draining;          /* 1: a shutdown notice was sent, 2: GOAWAY was sent */
    uint8_t aged;
    uint8_t dirty;             /* there are answers that were not sent yet */
    uint64_t drain_us;
    uint8_t abusive;           /* it was told to go */
    uint64_t bound;            /* whose taps its peer may bring (engine.h, yk_are_own) */
    uint32_t forbidden;        /* a bit for each method that its peer may not call */
    uint8_t failed;            /* what it sends is not read any more */
};

int yk_server_init(yk_server *server, const yk_server_limits *limits);
void yk_server_free(yk_server *server); /* all connections must be closed; calls in flight may still be answered before */
/* Register "/package.Service/Method"; its number, or -1 when the table is full or the path too long. */
int yk_server_add_method(yk_server *server, const char *path);

yk_connection *yk_connection_open(yk_server *server, void *owner, uint64_t now_us);
/* Calls in flight lose their connection and stay until they are answered. */
void yk_connection_close(yk_connection *connection);
/* 0, or -1: the peer broke the protocol or a bound; what is left to be sent should be sent, then the connection closed. */
int yk_connection_receive(yk_connection *connection, const uint8_t *bytes, size_t n, uint64_t now_us);
/* Copy what is to be sent to `out`; how many bytes. Less than `room` when there is no more, at least for now. -1: out of order. */
int64_t yk_connection_send(yk_connection *connection, uint8_t *out, size_t room);
/* Nothing will come of it any more. */
int yk_connection_done(const yk_connection *connection);
/* Once a second or so: time limits. 0, or -1: to be closed at once. There may be something to send afterwards. */
int yk_connection_tick(yk_connection *connection, uint64_t now_us);
/* Begin an orderly end: no new streams after the peer has heard of it. */
void yk_connection_drain(yk_connection *connection, uint64_t now_us);

/* Answer a call that was taken, and give it back. The message is copied. A call whose peer has gone is only given back. */
void yk_call_answer(yk_server *server, yk_call *call, const uint8_t *message, uint32_t n);
/* End it with an error: percent-encoded grpc-message, base64 of google.rpc.Status (or none). */
void yk_call_fail(yk_server *server, yk_call *call, int code, const char *message, size_t message_bytes, const uint8_t *details,
                  size_t details_bytes);

/* grpc-timeout: up to 8 digits and a unit of H M S m u n; microseconds, or -1. */
int64_t yk_parse_timeout(const uint8_t *text, size_t n);

#endif
