#include "grpc_server.h"

#include <stdlib.h>
#include <string.h>

enum { OK = 0, CANCELLED = 1, INVALID_ARGUMENT = 3, DEADLINE_EXCEEDED = 4, RESOURCE_EXHAUSTED = 8, UNIMPLEMENTED = 12, INTERNAL = 13 };
enum { HEADERS_COMING = 0, BODY_COMING = 1, REFUSED = 2, COMPLETE = 3, ANSWERED = 4 };
enum { FRAME_BYTES = 5, SPARE_MAX = 4096, UNKNOWN_METHOD = UINT16_MAX };
enum { FRAME_BYTES_MAX = 16384 + 1024 }; /* nghttp2 cuts DATA at 16 KiB, and our headers are short */
enum { DISCARDED_BYTES_MAX = 1 << 16, HEADER_EXCESS = 4, EXCESSES_MAX = 16 };
enum { UPDATES_A_FRAME = 2, UPDATED_BYTES_MIN = 1024 };
enum { WINDOW_STREAM = 1 << 20, WINDOW_CONNECTION = 8 << 20 };
enum { SECOND_US = 1000000, GOAWAY_AFTER_NOTICE_US = 300000, KEEPALIVE_US = 60 * SECOND_US, KEEPALIVE_GRACE_US = 20 * SECOND_US };

#define LITERAL(text) (const uint8_t *)(text), sizeof(text) - 1

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static yk_call *call_new(yk_connection *connection, int32_t stream_id) {
    yk_server *server = connection->server;
    yk_call *call = server->spare;
    if (call) {
        server->spare = call->next;
        server->spare_count--;
    } else if (!(call = malloc(sizeof *call))) {
        return NULL;
    }
    memset(call, 0, offsetof(yk_call, inline_body));
    call->connection = connection;
    call->stream_id = stream_id;
    call->method = UNKNOWN_METHOD;
    call->begun_us = server->now_us;
    call->body = call->inline_body;
    call->body_capacity = YK_CALL_INLINE_BYTES;
    call->next = connection->calls;
    if (call->next) call->next->previous = call;
    connection->calls = call;
    connection->call_count++;
    return call;
}

/* Count memory that a peer makes the server hold. */
static void hold(yk_server *server, yk_call *call, uint64_t bytes) {
    server->counts.buffered_bytes += bytes;
    if (call->connection) call->connection->held_bytes += bytes;
}

static void release(yk_server *server, yk_call *call, uint64_t bytes) {
    server->counts.buffered_bytes -= bytes;
    if (call->connection) call->connection->held_bytes -= bytes;
}

static uint64_t body_held(const yk_call *call) { return call->body == call->inline_body ? 0 : call->body_capacity; }

static uint64_t answer_held(const yk_call *call) {
    return call->answer == NULL || call->answer == call->inline_answer ? 0 : call->answer_bytes;
}

/* The connection forgets the call. */
static void call_detach(yk_call *call) {
    yk_connection *connection = call->connection;
    if (call->previous) call->previous->next = call->next;
    else connection->calls = call->next;
    if (call->next) call->next->previous = call->previous;
    if (--connection->call_count == 0) connection->idle_since_us = connection->server->now_us;
    connection->held_bytes -= body_held(call) + answer_held(call);
    call->connection = NULL;
    call->previous = call->next = NULL;
}

static void call_drop_body(yk_server *server, yk_call *call) {
    if (call->body == call->inline_body) return;
    release(server, call, body_held(call));
    free(call->body);
    call->body = call->inline_body;
    call->body_capacity = YK_CALL_INLINE_BYTES;
}

static void call_free(yk_server *server, yk_call *call) {
    call_drop_body(server, call);
    if (call->answer != call->inline_answer) {
        release(server, call, answer_held(call));
        free(call->answer);
    }
    if (server->spare_count < SPARE_MAX) {
        call->next = server->spare;
        server->spare = call;
        server->spare_count++;
    } else {
        free(call);
    }
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */

static nghttp2_nv header(const uint8_t *name, size_t name_bytes, const uint8_t *value, size_t value_bytes) {
    nghttp2_nv pair = {(uint8_t *)name, (uint8_t *)value, name_bytes, value_bytes,
                       NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
    return pair;
}

/* Names are literals and stay; the values of errors do not. */
static nghttp2_nv copied(const uint8_t *name, size_t name_bytes, const uint8_t *value, size_t value_bytes) {
    nghttp2_nv pair = header(name, name_bytes, value, value_bytes);
    pair.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME;
    return pair;
}

static const char *const code_texts[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"};

static ssize_t read_answer(nghttp2_session *session, int32_t stream_id, uint8_t *out, size_t room, uint32_t *flags,
                           nghttp2_data_source *source, void *user_data) {
    (void)user_data;
    yk_call *call = source->ptr;
    uint32_t left = call->answer_bytes - call->answer_sent;
    uint32_t n = left < room ? left : (uint32_t)room;
    memcpy(out, call->answer + call->answer_sent, n);
    call->answer_sent += n;
    if (n == left) {
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM; /* trailers end the stream */
        nghttp2_nv trailer = header(LITERAL("grpc-status"), LITERAL("0"));
        if (nghttp2_submit_trailer(session, stream_id, &trailer, 1) != 0) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    return n;
}

/* An answer of headers alone. */
static void submit_error(yk_call *call, int code, const char *message, size_t message_bytes, const uint8_t *details,
                         size_t details_bytes) {
    nghttp2_nv headers[5] = {
        header(LITERAL(":status"), LITERAL("200")),
        header(LITERAL("content-type"), LITERAL("application/grpc")),
        header(LITERAL("grpc-status"), (const uint8_t *)code_texts[code], strlen(code_texts[code])),
        copied(LITERAL("grpc-message"), (const uint8_t *)message, message_bytes),
        copied(LITERAL("grpc-status-details-bin"), details, details_bytes),
    };
    call->state = ANSWERED;
    call->status = (uint8_t)code;
    call->completed_us = call->connection->server->now_us;
    nghttp2_submit_response(call->connection->session, call->stream_id, headers, details_bytes ? 5 : 4, NULL);
}

/* Refuse a call that was not handed over. The answer leaves when the request has come in whole, as a client expects it, or
 * when too much still comes of it. The message outlives the call. */
static void refuse(yk_call *call, int code, const char *message) {
    call->state = REFUSED;
    call->status = (uint8_t)code;
    call->refusal = message;
}

/* Not gRPC at all: an HTTP status of three digits. */
static void refuse_http(yk_call *call, const char *http_status) {
    call->state = REFUSED;
    call->http_status = http_status;
    call->refusal = "";
}

static void answer_refusal(yk_call *call) {
    yk_server *server = call->connection->server;
    if (call->http_status) {
        nghttp2_nv headers[1] = {header(LITERAL(":status"), (const uint8_t *)call->http_status, 3)};
        call->state = ANSWERED;
        call->completed_us = server->now_us;
        nghttp2_submit_response(call->connection->session, call->stream_id, headers, 1, NULL);
        return;
    }
    server->refused[call->method == UNKNOWN_METHOD ? YK_METHODS_MAX : call->method][call->status]++;
    int overloaded = call->status == RESOURCE_EXHAUSTED;
    server->counts.refused_overload += (uint64_t)overloaded;
    submit_error(call, call->status, call->refusal, strlen(call->refusal), overloaded ? server->overload_details : NULL,
                 overloaded ? server->overload_details_bytes : 0);
}

void yk_call_answer(yk_server *server, yk_call *call, const uint8_t *message, uint32_t n) {
    static const char no_room[] = "too many answers wait to be taken; come back later";
    server->counts.calls_in_flight--;
    yk_connection *connection = call->connection;
    call->taken = 0;
    if (!connection) {
        call_free(server, call);
        return;
    }
    call_drop_body(server, call);
    connection->dirty = 1;
    call->answer_bytes = n + FRAME_BYTES;
    if (call->answer_bytes <= sizeof call->inline_answer) call->answer = call->inline_answer;
    else if (server->counts.buffered_bytes + call->answer_bytes <= server->limits.buffered_bytes_max)
        call->answer = malloc(call->answer_bytes);
    if (!call->answer) {
        /* Peers who do not take their answers have filled the room. What was asked for is done; asked again, it is told. */
        server->counts.refused_overload++;
        submit_error(call, RESOURCE_EXHAUSTED, no_room, sizeof no_room - 1,
                     server->overload_details, server->overload_details_bytes);
        return;
    }
    hold(server, call, answer_held(call));
    call->answer[0] = 0; /* not compressed */
    for (int i = 0; i < 4; i++) call->answer[1 + i] = (uint8_t)(n >> 8 * (3 - i));
    memcpy(call->answer + FRAME_BYTES, message, n);
    nghttp2_nv headers[2] = {
        header(LITERAL(":status"), LITERAL("200")),
        header(LITERAL("content-type"), LITERAL("application/grpc")),
    };
    nghttp2_data_provider provider = {{.ptr = call}, read_answer};
    call->state = ANSWERED;
    call->status = OK;
    call->completed_us = server->now_us;
    nghttp2_submit_response(connection->session, call->stream_id, headers, 2, &provider);
}

void yk_call_fail(yk_server *server, yk_call *call, int code, const char *message, size_t message_bytes, const uint8_t *details,
                  size_t details_bytes) {
    server->counts.calls_in_flight--;
    call->taken = 0;
    if (!call->connection) {
        call_free(server, call);
        return;
    }
    call_drop_body(server, call);
    call->connection->dirty = 1;
    submit_error(call, code, message, message_bytes, details, details_bytes);
}

/* ---- what a request's headers say --------------------------------------------------------------------------------- */

int64_t yk_parse_timeout(const uint8_t *text, size_t n) {
    if (n < 2 || n > 9) return -1;
    int64_t value = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        uint8_t digit = (uint8_t)(text[i] - '0');
        if (digit > 9) return -1;
        value = value * 10 + digit;
    }
    switch (text[n - 1]) {
    case 'H': return value * 3600 * SECOND_US;
    case 'M': return value * 60 * SECOND_US;
    case 'S': return value * SECOND_US;
    case 'm': return value * 1000;
    case 'u': return value;
    case 'n': return (value + 999) / 1000;
    default: return -1;
    }
}

static int equals(const uint8_t *bytes, size_t n, const char *text) { return n == strlen(text) && memcmp(bytes, text, n) == 0; }

static uint16_t find_method(const yk_server *server, const uint8_t *path, size_t n) {
    for (uint16_t method = 0; method < server->methods; method++)
        if (server->path_bytes[method] == n && memcmp(server->paths[method], path, n) == 0) return method;
    return UNKNOWN_METHOD;
}

/* application/grpc, alone or with a subtype or parameters. */
static int is_grpc_type(const uint8_t *value, size_t n) {
    static const char type[] = "application/grpc";
    size_t length = sizeof type - 1;
    return n >= length && memcmp(value, type, length) == 0 &&
           (n == length || value[length] == ';' || equals(value + length, n - length, "+proto") ||
            (n > length + 6 && memcmp(value + length, "+proto;", 7) == 0));
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_bytes,
                     const uint8_t *value, size_t value_bytes, uint8_t flags, void *user_data) {
    (void)flags;
    yk_connection *connection = user_data;
    yk_call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (!call || call->state != HEADERS_COMING) return 0; /* trailers of a request say nothing to us */
    call->header_bytes += (uint32_t)(name_bytes + value_bytes + 32); /* as SETTINGS_MAX_HEADER_LIST_SIZE counts */
    if (call->header_bytes > connection->server->limits.header_bytes_max) {
        /* Told off when all are there; but far beyond, the stream is reset and the rest not looked at, for a byte of HPACK can
         * stand for four thousand. */
        if (call->header_bytes <= HEADER_EXCESS * (uint64_t)connection->server->limits.header_bytes_max) return 0;
        connection->reset_credit -= (int32_t)connection->server->limits.resets_max / EXCESSES_MAX;
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    switch (name_bytes) {
    case 5:
        if (memcmp(name, ":path", 5) == 0) call->method = find_method(connection->server, value, value_bytes);
        break;
    case 7:
        if (memcmp(name, ":method", 7) == 0) call->is_post = (uint8_t)equals(value, value_bytes, "POST");
        break;
    case 12:
        if (memcmp(name, "content-type", 12) == 0) call->content_type_seen = (uint8_t)is_grpc_type(value, value_bytes);
        else if (memcmp(name, "grpc-timeout", 12) == 0) {
            int64_t timeout_us = yk_parse_timeout(value, value_bytes);
            if (timeout_us < 0) call->timeout_bad = 1;
            else call->deadline_us = connection->server->now_us + (uint64_t)timeout_us;
        }
        break;
    case 13:
        if (memcmp(name, "grpc-encoding", 13) == 0) call->encoding_refused = !equals(value, value_bytes, "identity");
        break;
    default: break;
    }
    return 0;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) {
    yk_connection *connection = user_data;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    yk_call *call = call_new(connection, frame->hd.stream_id);
    if (!call) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, call);
    return 0;
}

static void on_headers_complete(yk_connection *connection, yk_call *call) {
    yk_server *server = connection->server;
    call->state = BODY_COMING;
    if (call->header_bytes > server->limits.header_bytes_max) refuse(call, RESOURCE_EXHAUSTED, "metadata is larger than the limit");
    else if (!call->is_post) refuse_http(call, "405");
    else if (!call->content_type_seen) refuse_http(call, "415");
    else if (call->method == UNKNOWN_METHOD) refuse(call, UNIMPLEMENTED, server->unimplemented);
    else if (call->timeout_bad) refuse(call, INTERNAL, "grpc-timeout cannot be read");
    else if (call->deadline_us && call->deadline_us <= server->now_us)
        refuse(call, DEADLINE_EXCEEDED, "the deadline had passed before the work began");
}

/* ---- a request's body --------------------------------------------------------------------------------------------- */

/* Room for `need` bytes: doubled up to the length that the frame claims, so that a claim alone costs no memory. */
static int body_reserve(yk_server *server, yk_call *call, uint32_t need) {
    if (need <= call->body_capacity) return 0;
    uint64_t capacity = (uint64_t)call->body_capacity * 4;
    uint64_t most = (uint64_t)server->limits.message_bytes_max + FRAME_BYTES;
    if (capacity < need) capacity = need;
    if (capacity > most) capacity = most;
    uint64_t held = body_held(call);
    if (server->counts.buffered_bytes - held + capacity > server->limits.buffered_bytes_max) return -1;
    if (call->connection->held_bytes - held + capacity > server->limits.connection_bytes_max) return -1;
    uint8_t *body = malloc(capacity);
    if (!body) return -1;
    memcpy(body, call->body, call->body_bytes);
    if (call->body != call->inline_body) free(call->body);
    call->body = body;
    call->body_capacity = (uint32_t)capacity;
    hold(server, call, capacity - held);
    return 0;
}

static uint32_t claimed_bytes(const yk_call *call) {
    return (uint32_t)call->body[1] << 24 | (uint32_t)call->body[2] << 16 | (uint32_t)call->body[3] << 8 | call->body[4];
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *bytes, size_t n, void *user_data) {
    (void)flags;
    yk_connection *connection = user_data;
    yk_server *server = connection->server;
    yk_call *call = nghttp2_session_get_stream_user_data(session, stream_id);
    if (!call) return 0;
    if (call->state == REFUSED) { /* what still comes is not kept, and not much of it taken */
        call->discarded_bytes += (uint32_t)n;
        if (call->discarded_bytes > DISCARDED_BYTES_MAX) answer_refusal(call);
    }
    if (call->state != BODY_COMING) return 0;
    uint64_t need = (uint64_t)call->body_bytes + n;
    if (need > (uint64_t)server->limits.message_bytes_max + FRAME_BYTES) {
        refuse(call, RESOURCE_EXHAUSTED, "the message is larger than the limit");
        return 0;
    }
    if (body_reserve(server, call, (uint32_t)need) != 0) {
        refuse(call, RESOURCE_EXHAUSTED, "too much is waiting; come back later");
        return 0;
    }
    memcpy(call->body + call->body_bytes, bytes, n);
    call->body_bytes = (uint32_t)need;
    if (call->body_bytes >= FRAME_BYTES && call->body[0] == 0 && claimed_bytes(call) > server->limits.message_bytes_max)
        refuse(call, RESOURCE_EXHAUSTED, "the message is larger than the limit");
    return 0;
}

static int ready_push(yk_server *server, yk_call *call) {
    if (server->ready_count == server->ready_capacity) {
        uint32_t capacity = server->ready_capacity ? server->ready_capacity * 2 : 256;
        yk_call **ready = realloc(server->ready, capacity * sizeof *ready);
        if (!ready) return -1;
        server->ready = ready;
        server->ready_capacity = capacity;
    }
    server->ready[server->ready_count++] = call;
    return 0;
}

static void on_request_complete(yk_connection *connection, yk_call *call) {
    yk_server *server = connection->server;
    if (call->state == REFUSED) answer_refusal(call);
    if (call->state != BODY_COMING) return;
    if (call->body_bytes < FRAME_BYTES) {
        refuse(call, INTERNAL, "a unary request has one message");
    } else if (call->body[0] == 1) {
        /* Refused rather than inflated: the messages do not shrink, and a bomb cannot go off. */
        refuse(call, call->encoding_refused ? UNIMPLEMENTED : INTERNAL, "compressed messages are not accepted here: use identity");
    } else if (call->body[0] != 0 || claimed_bytes(call) != call->body_bytes - FRAME_BYTES) {
        refuse(call, INTERNAL, "a unary request has one message");
    } else if (server->counts.calls_in_flight >= server->limits.calls_max ||
               connection->held_bytes > server->limits.connection_bytes_max || ready_push(server, call) != 0) {
        refuse(call, RESOURCE_EXHAUSTED, "too much is waiting; come back later");
    } else {
        call->state = COMPLETE;
        call->taken = 1;
        call->message = call->body + FRAME_BYTES;
        call->message_bytes = call->body_bytes - FRAME_BYTES;
        call->completed_us = server->now_us;
        call->bound = connection->bound; /* kept here too, since the connection may be gone when the call is looked at */
        call->forbidden = connection->forbidden >> call->method & 1;
        server->counts.calls_in_flight++;
        connection->control_credit = (int32_t)server->limits.control_frames_max; /* earned back what its frames cost */
    }
    if (call->state == REFUSED) answer_refusal(call);
}

/* ---- frames ------------------------------------------------------------------------------------------------------- */

/* Who has used up its credit is not listened to any more, and sent away. */
static int judge(yk_connection *connection) {
    if (connection->control_credit >= 0 && connection->reset_credit >= 0) return 0;
    if (!connection->abusive) connection->server->counts.connections_closed_for_abuse++;
    connection->abusive = 1;
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

/* Never from a callback: nghttp2 1.52 goes on reading then, and a frame of a wrong size trips an assertion (CVE-2026-27135; with
 * Debian's fix still so behind an empty DATA frame). */
static void send_away(yk_connection *connection) {
    connection->failed = 1;
    nghttp2_session_terminate_session(connection->session, NGHTTP2_ENHANCE_YOUR_CALM);
}

/* What comes on closed streams is ignored by nghttp2, and told to nobody else. */
static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *user_data) {
    yk_connection *connection = user_data;
    if (hd->type != NGHTTP2_DATA && hd->type != NGHTTP2_HEADERS) return 0;
    if (hd->stream_id > nghttp2_session_get_last_proc_stream_id(session)) return 0;
    if (nghttp2_session_find_stream(session, hd->stream_id)) return 0;
    connection->control_credit--;
    return judge(connection);
}

/* Frames of kinds that nobody knows must be ignored, but not without end. */
static int on_unknown_frame(nghttp2_session *session, void **payload, const nghttp2_frame_hd *hd, void *user_data) {
    (void)session, (void)payload, (void)hd;
    yk_connection *connection = user_data;
    connection->control_credit--;
    int error = judge(connection);
    return error ? error : NGHTTP2_ERR_CANCEL;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) {
    yk_connection *connection = user_data;
    connection->greeted = 1;
    yk_call *call;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
    case NGHTTP2_DATA:
        call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
        if (frame->hd.type == NGHTTP2_DATA && frame->hd.length <= frame->data.padlen &&
            !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
            connection->control_credit--; /* empty or padding: it brings nothing on */
        if (!call) break;
        if (frame->hd.type == NGHTTP2_HEADERS && call->state == HEADERS_COMING) on_headers_complete(connection, call);
        if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) on_request_complete(connection, call);
        break;
    case NGHTTP2_RST_STREAM:
        connection->server->counts.resets++;
        connection->reset_credit--;
        break;
    default: connection->control_credit--; /* SETTINGS, PING, PRIORITY, WINDOW_UPDATE */
    }
    return judge(connection);
}

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user_data) {
    (void)session, (void)frame, (void)error;
    yk_connection *connection = user_data;
    connection->control_credit--;
    return judge(connection);
}

static int on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *user_data) {
    yk_connection *connection = user_data;
    yk_call *call = nghttp2_session_get_stream_user_data(session, stream_id);
    if (!call) return 0;
    /* Only an answer that was taken earns back a reset: whoever asks and resets, again and again, must run out of credit. */
    if (error_code == NGHTTP2_NO_ERROR && call->state == ANSWERED && call->status == OK &&
        connection->reset_credit < (int32_t)connection->server->limits.resets_max)
        connection->reset_credit++;
    nghttp2_session_set_stream_user_data(session, stream_id, NULL);
    call_detach(call);
    if (!call->taken) call_free(connection->server, call); /* else its answer will find nobody */
    return 0;
}

/* An answer that left before its request had come in whole: the peer need not go on sending. And a stream that the peer made us
 * reset, by whatever offence, costs it as much as one that it reset itself. */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) {
    yk_connection *connection = user_data;
    if (frame->hd.type == NGHTTP2_HEADERS && frame->hd.flags & NGHTTP2_FLAG_END_STREAM &&
        nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    /* Who takes an answer may open two windows for each frame of it, its stream's and the connection's. */
    if (frame->hd.type == NGHTTP2_DATA && frame->hd.length >= UPDATED_BYTES_MIN) {
        int32_t most = (int32_t)connection->server->limits.control_frames_max;
        connection->control_credit += UPDATES_A_FRAME;
        if (connection->control_credit > most) connection->control_credit = most;
    }
    if (frame->hd.type == NGHTTP2_RST_STREAM && frame->rst_stream.error_code != NGHTTP2_NO_ERROR &&
        frame->rst_stream.error_code != NGHTTP2_CANCEL) {
        connection->reset_credit--;
        (void)judge(connection); /* what there is to be sent is sent all the same */
    }
    return 0;
}

/* ---- server and connections --------------------------------------------------------------------------------------- */

int yk_server_init(yk_server *server, const yk_server_limits *limits) {
    memset(server, 0, sizeof *server);
    server->limits = *limits;
    server->unimplemented = "";
    if (nghttp2_session_callbacks_new(&server->callbacks) != 0) return -1;
    nghttp2_session_callbacks_set_on_begin_headers_callback(server->callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(server->callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(server->callbacks, on_data);
    nghttp2_session_callbacks_set_on_begin_frame_callback(server->callbacks, on_begin_frame);
    nghttp2_session_callbacks_set_unpack_extension_callback(server->callbacks, on_unknown_frame);
    nghttp2_session_callbacks_set_on_frame_recv_callback(server->callbacks, on_frame);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(server->callbacks, on_invalid_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(server->callbacks, on_stream_close);
    nghttp2_session_callbacks_set_on_frame_send_callback(server->callbacks, on_frame_send);
    if (nghttp2_option_new(&server->option) != 0) return -1;
    nghttp2_option_set_no_closed_streams(server->option, 1);
    for (int type = NGHTTP2_CONTINUATION + 1; type <= UINT8_MAX; type++)
        nghttp2_option_set_user_recv_extension_type(server->option, (uint8_t)type);
    return 0;
}

void yk_server_free(yk_server *server) {
    while (server->spare) {
        yk_call *call = server->spare;
        server->spare = call->next;
        free(call);
    }
    free(server->ready);
    if (server->callbacks) nghttp2_session_callbacks_del(server->callbacks);
    if (server->option) nghttp2_option_del(server->option);
    memset(server, 0, sizeof *server);
}

int yk_server_add_method(yk_server *server, const char *path) {
    size_t n = strlen(path);
    if (server->methods == YK_METHODS_MAX || n >= YK_PATH_BYTES_MAX) return -1;
    memcpy(server->paths[server->methods], path, n + 1);
    server->path_bytes[server->methods] = (uint16_t)n;
    return server->methods++;
}

yk_connection *yk_connection_open(yk_server *server, void *owner, uint64_t now_us) {
    yk_connection *connection = calloc(1, sizeof *connection);
    if (!connection) return NULL;
    server->now_us = now_us;
    connection->server = server;
    connection->owner = owner;
    connection->born_us = connection->heard_us = connection->idle_since_us = now_us;
    connection->control_credit = (int32_t)server->limits.control_frames_max;
    connection->reset_credit = (int32_t)server->limits.resets_max;
    nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, server->limits.streams_max},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_STREAM},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, server->limits.header_bytes_max},
    };
    if (nghttp2_session_server_new2(&connection->session, server->callbacks, connection, server->option) != 0 ||
        nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, 3) != 0 ||
        nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, WINDOW_CONNECTION) != 0) {
        nghttp2_session_del(connection->session);
        free(connection);
        return NULL;
    }
    server->counts.connections_opened++;
    server->counts.connections_open++;
    return connection;
}

void yk_connection_close(yk_connection *connection) {
    yk_server *server = connection->server;
    nghttp2_session_del(connection->session);
    while (connection->calls) {
        yk_call *call = connection->calls;
        call_detach(call);
        if (!call->taken) call_free(server, call);
    }
    server->counts.connections_open--;
    free(connection);
}

int yk_connection_receive(yk_connection *connection, const uint8_t *bytes, size_t n, uint64_t now_us) {
    if (connection->failed) return -1;
    connection->server->now_us = connection->heard_us = now_us;
    ssize_t read = nghttp2_session_mem_recv(connection->session, bytes, n);
    if (read >= 0) return 0;
    if (read == NGHTTP2_ERR_FLOODED && !connection->abusive) {
        connection->abusive = 1;
        connection->server->counts.connections_closed_for_abuse++;
    }
    if (connection->abusive) send_away(connection);
    connection->failed = 1;
    return -1;
}

int64_t yk_connection_send(yk_connection *connection, uint8_t *out, size_t room) {
    size_t filled = 0;
    connection->dirty = 0;
    /* A chunk is at most a frame: as long as one more is sure to fit, take it. */
    while (room - filled >= FRAME_BYTES_MAX) {
        const uint8_t *chunk;
        ssize_t n = nghttp2_session_mem_send(connection->session, &chunk);
        if (n < 0) return -1;
        if (n == 0 && connection->abusive && !connection->failed) {
            send_away(connection);
            continue;
        }
        if (n == 0) return (int64_t)filled;
        if ((size_t)n > room - filled) return -1;
        memcpy(out + filled, chunk, (size_t)n);
        filled += (size_t)n;
    }
    return (int64_t)filled;
}

int yk_connection_done(const yk_connection *connection) {
    if (connection->draining == 2 && connection->call_count == 0 && !nghttp2_session_want_write(connection->session)) return 1;
    return !nghttp2_session_want_read(connection->session) && !nghttp2_session_want_write(connection->session);
}

void yk_connection_drain(yk_connection *connection, uint64_t now_us) {
    if (connection->draining) return;
    connection->draining = 1;
    connection->drain_us = now_us;
    nghttp2_submit_shutdown_notice(connection->session);
}

int yk_connection_tick(yk_connection *connection, uint64_t now_us) {
    yk_server *server = connection->server;
    const yk_server_limits *limits = &server->limits;
    server->now_us = now_us;
    if (!connection->greeted && now_us - connection->born_us > limits->preface_us_max) return -1;
    if ((connection->abusive || connection->failed) && now_us - connection->heard_us > SECOND_US) return -1;
    /* What a second earns back, so that a long-lived connection may ping. */
    if (connection->control_credit < (int32_t)limits->control_frames_max) connection->control_credit += (int32_t)limits->control_frames_max / 60 + 1;
    if (connection->reset_credit < (int32_t)limits->resets_max) connection->reset_credit += (int32_t)limits->resets_max / 60 + 1;
    for (yk_call *call = connection->calls, *next; call; call = next) {
        next = call->next;
        if (call->state <= BODY_COMING && now_us - call->begun_us > limits->request_us_max) {
            call->state = ANSWERED; /* what still comes of it is not kept */
            call->completed_us = now_us;
            nghttp2_submit_rst_stream(connection->session, NGHTTP2_FLAG_NONE, call->stream_id, NGHTTP2_CANCEL);
        } else if (call->state == ANSWERED && now_us - call->completed_us > limits->response_us_max) {
            call->completed_us = now_us;
            nghttp2_submit_rst_stream(connection->session, NGHTTP2_FLAG_NONE, call->stream_id, NGHTTP2_CANCEL);
        } else if (call->state == REFUSED && now_us - call->begun_us > SECOND_US) {
            answer_refusal(call);
        }
    }
    if (now_us - connection->heard_us > KEEPALIVE_US + KEEPALIVE_GRACE_US) return -1;
    if (now_us - connection->heard_us > KEEPALIVE_US) nghttp2_submit_ping(connection->session, NGHTTP2_FLAG_NONE, NULL);
    if (connection->call_count == 0 && now_us - connection->idle_since_us > limits->idle_us_max) yk_connection_drain(connection, now_us);
    if (limits->age_us_max && !connection->aged && now_us - connection->born_us > limits->age_us_max) {
        connection->aged = 1;
        yk_connection_drain(connection, now_us);
    }
    if (connection->draining == 1 && now_us - connection->drain_us > GOAWAY_AFTER_NOTICE_US) {
        connection->draining = 2;
        nghttp2_submit_goaway(connection->session, NGHTTP2_FLAG_NONE,
                              nghttp2_session_get_last_proc_stream_id(connection->session), NGHTTP2_NO_ERROR, NULL, 0);
    }
    if (connection->draining && now_us - connection->drain_us > limits->age_grace_us) return -1;
    return 0;
}
