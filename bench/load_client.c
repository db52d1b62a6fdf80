#include "load_client.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    OUT_BYTES = 128 << 10,       /* what one send takes at most */
    FRAME_BYTES = (16 << 10) + 9, /* the longest that nghttp2 hands out at once */
    IN_BYTES = 256 << 10,
    ANSWER_BYTES_MAX = 64 << 20,
    EVENTS = 256,
    GRPC_CANCELLED = 1,
    GRPC_RESOURCE_EXHAUSTED = 8,
    GRPC_UNAVAILABLE = 14,
    RESULT_ACCEPTED = 1,
    MESSAGE_BYTES = 96,
};
static const uint64_t RETRY_NS = 20000000;       /* between attempts to connect again */
static const uint32_t SLOTS_MAX = 10 * 86400;    /* a day of time series */
static const int32_t WINDOW_BYTES = 64 << 20;    /* so that answers never wait for us to give credit */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((format(printf, 2, 3))) static void say_once(char text[YK_LOAD_TEXT], const char *format, ...) {
    if (text[0]) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, YK_LOAD_TEXT, format, arguments);
    va_end(arguments);
}

/* ---- histogram ---- */

static uint32_t bucket_of(uint64_t ns) {
    if (ns < 2048) return (uint32_t)ns;
    int shift = 63 - __builtin_clzll(ns) - 10;
    return (uint32_t)(shift * 1024) + (uint32_t)(ns >> shift);
}

uint64_t yk_histogram_upper_ns(uint32_t bucket) {
    if (bucket < 2048) return bucket;
    uint32_t shift = bucket / 1024 - 1;
    return ((uint64_t)(bucket - shift * 1024 + 1) << shift) - 1;
}

void yk_histogram_record(yk_histogram *histogram, uint64_t ns) {
    if (ns > YK_HISTOGRAM_NS_MAX) ns = YK_HISTOGRAM_NS_MAX;
    histogram->counts[bucket_of(ns)]++;
    histogram->n++;
    histogram->sum_ns += (double)ns;
    if (ns > histogram->max_ns) histogram->max_ns = ns;
}

uint64_t yk_histogram_percentile_ns(const yk_histogram *histogram, double percent) {
    if (histogram->n == 0) return 0;
    double wanted = ceil(percent / 100 * (double)histogram->n);
    uint64_t rank = wanted < 1 ? 1 : wanted > (double)histogram->n ? histogram->n : (uint64_t)wanted;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < YK_HISTOGRAM_BUCKETS; i++) {
        seen += histogram->counts[i];
        if (seen >= rank) {
            uint64_t upper = yk_histogram_upper_ns(i);
            return upper < histogram->max_ns ? upper : histogram->max_ns;
        }
    }
    return histogram->max_ns;
}

/* ---- OpenSSL, loaded at run time: its headers are not needed to build; these prototypes have not changed since 1.1.1 ---- */

typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_st SSL;

static struct {
    const void *(*client_method)(void);
    SSL_CTX *(*ctx_new)(const void *);
    void (*ctx_free)(SSL_CTX *);
    long (*ctx_ctrl)(SSL_CTX *, int, long, void *);
    int (*ctx_alpn)(SSL_CTX *, const unsigned char *, unsigned);
    int (*ctx_ca)(SSL_CTX *, const char *file, const char *folder);
    void (*ctx_verify)(SSL_CTX *, int mode, void *callback);
    int (*ctx_certificate)(SSL_CTX *, const char *file);
    int (*ctx_key)(SSL_CTX *, const char *file, int type);
    int (*ctx_check_key)(const SSL_CTX *);
    void (*ctx_read_bytes)(SSL_CTX *, size_t);
    SSL *(*make)(SSL_CTX *);
    void (*free)(SSL *);
    int (*set_fd)(SSL *, int);
    void (*connect_state)(SSL *);
    int (*handshake)(SSL *);
    int (*read)(SSL *, void *, int);
    int (*write)(SSL *, const void *, int);
    int (*error)(const SSL *, int);
    long (*ctrl)(SSL *, int, long, void *);
    int (*set_host)(SSL *, const char *);
    void *(*param)(SSL *);
    int (*set_ip)(void *, const char *);
    void (*alpn)(const SSL *, const unsigned char **, unsigned *);
    long (*verify_result)(const SSL *);
    const char *(*verify_text)(long);
    unsigned long (*last_error)(void);
    const char *(*error_text)(unsigned long);
    void (*clear_errors)(void);
} tls;

enum {
    CTRL_MODE = 33,
    CTRL_HOST_NAME = 55,
    CTRL_MIN_VERSION = 123,
    TLS_1_3 = 0x0304,
    MODE_PARTIAL_MOVING = 1 | 2,
    FILE_PEM = 1,
    ERROR_WANT_READ = 2,
    ERROR_WANT_WRITE = 3,
};

/* Returns NULL, or what is missing. */
static const char *open_tls(void) {
    static const char *const NAMES[] = {"libssl.so.3", "libssl.so.1.1", "libssl.so"};
    static void *library;
    if (tls.client_method != NULL) return NULL;
    for (size_t i = 0; library == NULL && i < sizeof NAMES / sizeof NAMES[0]; i++) library = dlopen(NAMES[i], RTLD_NOW);
    if (library == NULL) return "libssl.so.3 (OpenSSL)";
    /* POSIX promises that a function pointer may be read out of dlsym's void pointer, which ISO C does not. libcrypto's names
     * are found as well, since libssl depends on it. */
    struct {
        const char *name;
        void *function;
    } wanted[] = {
        {"SSL_CTX_new", &tls.ctx_new},
        {"SSL_CTX_free", &tls.ctx_free},
        {"SSL_CTX_ctrl", &tls.ctx_ctrl},
        {"SSL_CTX_set_alpn_protos", &tls.ctx_alpn},
        {"SSL_CTX_load_verify_locations", &tls.ctx_ca},
        {"SSL_CTX_set_verify", &tls.ctx_verify},
        {"SSL_CTX_use_certificate_chain_file", &tls.ctx_certificate},
        {"SSL_CTX_use_PrivateKey_file", &tls.ctx_key},
        {"SSL_CTX_check_private_key", &tls.ctx_check_key},
        {"SSL_CTX_set_default_read_buffer_len", &tls.ctx_read_bytes},
        {"SSL_new", &tls.make},
        {"SSL_free", &tls.free},
        {"SSL_set_fd", &tls.set_fd},
        {"SSL_set_connect_state", &tls.connect_state},
        {"SSL_do_handshake", &tls.handshake},
        {"SSL_read", &tls.read},
        {"SSL_write", &tls.write},
        {"SSL_get_error", &tls.error},
        {"SSL_ctrl", &tls.ctrl},
        {"SSL_set1_host", &tls.set_host},
        {"SSL_get0_param", &tls.param},
        {"X509_VERIFY_PARAM_set1_ip_asc", &tls.set_ip},
        {"SSL_get0_alpn_selected", &tls.alpn},
        {"SSL_get_verify_result", &tls.verify_result},
        {"X509_verify_cert_error_string", &tls.verify_text},
        {"ERR_get_error", &tls.last_error},
        {"ERR_reason_error_string", &tls.error_text},
        {"ERR_clear_error", &tls.clear_errors},
        {"TLS_client_method", &tls.client_method}, /* the last, since it says that all are there */
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *found = dlsym(library, wanted[i].name);
        if (found == NULL) return wanted[i].name;
        memcpy(wanted[i].function, &found, sizeof found);
    }
    return NULL;
}

/* ---- state ---- */

typedef struct connection connection;

/* A place for one request in flight. */
typedef struct stream {
    connection *on;
    struct stream *next_free;
    uint64_t due_ns; /* closed loop: when it was begun */
    uint64_t request;
    size_t uploaded; /* bytes of prefix and message that nghttp2 has taken */
    uint8_t *answer;
    size_t answer_bytes, answer_room;
    int32_t id;
    int16_t http_status;
    int16_t grpc_status; /* -1 until it comes */
    uint8_t used, judged, resent;
    uint8_t message_bytes;
    char message[MESSAGE_BYTES]; /* grpc-message */
} stream;

typedef enum { DOWN, CONNECTING, HANDSHAKE, GREETING, UP, DRAINING } phase;

struct connection {
    yk_load *load;
    nghttp2_session *session;
    SSL *ssl;
    int fd;
    phase phase;
    uint8_t dirty;    /* in the list of those that may have something to send */
    uint8_t waits;    /* the socket is full: EPOLLOUT is asked for */
    uint8_t was_up;
    uint8_t listed;
    uint32_t open;
    uint32_t limit; /* streams, or fewer where the server allows fewer */
    uint32_t level; /* the list it stands in: open streams */
    uint64_t retry_ns;
    connection *before, *after; /* connections with as many open streams that can take another */
    connection *next_dirty;
    stream *streams, *free;
    uint8_t *out;
    size_t out_at, out_bytes;
};

typedef struct {
    uint64_t request, due_ns;
} lost_request;

struct yk_load {
    yk_load_config config;
    yk_load_result result;
    struct addrinfo *address;
    SSL_CTX *ctx;
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    nghttp2_nv headers[8];
    size_t headers_n;
    char timeout[16];
    int epoll;
    int no_pwait2;
    int numeric_name;

    connection *connections;
    stream *streams;
    connection *dirty;
    connection **levels; /* by open streams, each the head of a ring */
    uint32_t lowest;     /* no list below this one has anybody */

    uint64_t now;
    uint64_t stop_ns, begun_ns;
    uint64_t quiet_ns; /* since when nothing is left to send */
    uint64_t away_ns;  /* since when no connection is up */
    uint64_t alive_ns; /* when the last request was begun or answered */
    uint64_t next;                                 /* request */
    double next_due_ns;                            /* after start */
    uint64_t random;
    uint64_t open;
    uint32_t up;
    int running, ended, last_call; /* last call: what fell due before stop_ns has had its chance */

    lost_request *lost; /* a ring; never fuller than all streams */
    uint64_t lost_first, lost_n, lost_room;
    uint8_t in[IN_BYTES];
};

static void *take(yk_load *load, size_t n, size_t size) {
    void *memory = calloc(n ? n : 1, size);
    if (memory == NULL) say_once(load->result.error, "out of memory");
    return memory;
}

static yk_load_slot *slot_at(yk_load *load) {
    static yk_load_slot nowhere;
    yk_load_result *r = &load->result;
    uint64_t i = (load->now - r->start_ns) / YK_LOAD_SLOT_NS;
    if (i >= SLOTS_MAX) return &nowhere;
    if (i >= r->slots_room) {
        uint32_t room = r->slots_room ? r->slots_room : 256;
        while (room <= i) room *= 2;
        yk_load_slot *more = realloc(r->slots, room * sizeof *more);
        if (more == NULL) return &nowhere;
        memset(more + r->slots_room, 0, (room - r->slots_room) * sizeof *more);
        r->slots = more;
        r->slots_room = room;
    }
    if (i >= r->slots_n) r->slots_n = (uint32_t)i + 1;
    return &r->slots[i];
}

/* ---- which connection has the fewest open streams: rings by number of them, first come first served in each ---- */

static void unlist(connection *c) {
    if (!c->listed) return;
    connection **head = &c->load->levels[c->level];
    if (c->after == c) {
        *head = NULL;
    } else {
        c->before->after = c->after;
        c->after->before = c->before;
        if (*head == c) *head = c->after;
    }
    c->listed = 0;
}

static void relist(connection *c) {
    yk_load *load = c->load;
    if (load->config.rate == 0) return;
    unlist(c);
    if (c->phase != UP || c->open >= c->limit) return;
    connection **head = &load->levels[c->open];
    if (*head == NULL) {
        *head = c->before = c->after = c;
    } else {
        c->after = *head;
        c->before = (*head)->before;
        c->before->after = c;
        c->after->before = c;
    }
    c->level = c->open;
    c->listed = 1;
    if (c->level < load->lowest) load->lowest = c->level;
}

static connection *least_busy(yk_load *load) {
    for (; load->lowest < load->config.streams; load->lowest++) {
        if (load->levels[load->lowest] != NULL) return load->levels[load->lowest];
    }
    return NULL;
}

static void touch(connection *c) {
    if (c->dirty) return;
    c->dirty = 1;
    c->next_dirty = c->load->dirty;
    c->load->dirty = c;
}

/* ---- judging answers ---- */

typedef struct {
    const uint8_t *at, *end;
    int bad;
} reader;

static uint64_t read_varint(reader *r) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (r->at == r->end) break;
        uint8_t byte = *r->at++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
    r->bad = 1;
    return 0;
}

/* The field's number, 0 at the end or when it cannot be read; a varint is left in *value, a string in *inside. */
static uint32_t read_field(reader *r, uint64_t *value, reader *inside) {
    if (r->at == r->end || r->bad) return 0;
    uint64_t tag = read_varint(r);
    uint64_t length = 0;
    *value = 0;
    *inside = (reader){r->at, r->at, 0};
    switch (tag & 7) {
        case 0: *value = read_varint(r); break;
        case 1: length = 8; break;
        case 2: length = read_varint(r); break;
        case 5: length = 4; break;
        default: r->bad = 1;
    }
    if (r->bad || tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF || length > (uint64_t)(r->end - r->at)) {
        r->bad = 1;
        return 0;
    }
    if (tag & 7) *inside = (reader){r->at, r->at + length, 0};
    r->at += length;
    return (uint32_t)(tag >> 3);
}

/* How often field 1 stands in a message: the taps of a request. */
static uint64_t count_taps(const uint8_t *bytes, size_t n) {
    reader r = {bytes, bytes + n, 0}, inside;
    uint64_t count = 0, value;
    uint32_t field;
    while ((field = read_field(&r, &value, &inside)) != 0) count += field == 1;
    return count;
}

/* AuthorizeTapResponse and SubmitTapsResponse alike are outcomes in field 1. Returns whether all are as they should be. */
static int check_taps(yk_load *load, const stream *s, const uint8_t *message, size_t n) {
    yk_load_result *result = &load->result;
    const yk_load_config *config = &load->config;
    uint64_t taps = count_taps(config->requests + config->offsets[s->request],
                               (size_t)(config->offsets[s->request + 1] - config->offsets[s->request]));
    reader r = {message, message + n, 0}, inside, skipped;
    uint64_t outcomes = 0, value;
    uint32_t field;
    int right = 1;
    while ((field = read_field(&r, &value, &inside)) != 0) {
        if (field != 1) continue;
        uint64_t code = 0, duplicate = 0, charged_fen = 0;
        while ((field = read_field(&inside, &value, &skipped)) != 0) {
            if (field == 1) code = value;
            if (field == 2) duplicate = value;
            if (field == 3) charged_fen = value;
        }
        r.bad |= inside.bad;
        result->results[code < YK_LOAD_RESULTS ? code : YK_LOAD_RESULTS - 1]++;
        /* What was sent twice may well have been booked the first time. */
        if (code != RESULT_ACCEPTED || (duplicate && !s->resent) ||
            (config->charged_fen >= 0 && charged_fen != (uint64_t)config->charged_fen)) {
            say_once(result->first_wrong, "request %llu: outcome %llu: result %llu, duplicate %llu, charged_fen %lld",
                     (unsigned long long)s->request, (unsigned long long)outcomes, (unsigned long long)code,
                     (unsigned long long)duplicate, (long long)charged_fen);
            right = 0;
        }
        outcomes++;
    }
    if (r.bad) {
        say_once(result->first_wrong, "request %llu: the answer is no protobuf message", (unsigned long long)s->request);
        return 0;
    }
    if (outcomes != taps) {
        say_once(result->first_wrong, "request %llu: %llu taps, but %llu outcomes", (unsigned long long)s->request,
                 (unsigned long long)taps, (unsigned long long)outcomes);
        return 0;
    }
    if (right) result->taps += taps;
    return right;
}

static int check_answer(yk_load *load, const stream *s) {
    yk_load_result *r = &load->result;
    unsigned long long request = s->request;
    if (s->http_status != 200 || s->grpc_status != 0) {
        say_once(r->first_wrong, "request %llu: HTTP status %d, grpc-status %d %.*s", request, s->http_status, s->grpc_status,
                 s->message_bytes, s->message);
        return 0;
    }
    const uint8_t *bytes = s->answer;
    if (s->answer_bytes < 5 || bytes[0] != 0 ||
        ((uint64_t)bytes[1] << 24 | (uint64_t)bytes[2] << 16 | (uint64_t)bytes[3] << 8 | bytes[4]) != s->answer_bytes - 5) {
        say_once(r->first_wrong, "request %llu: the answer's %zu bytes are not one uncompressed gRPC message", request,
                 s->answer_bytes);
        return 0;
    }
    return load->config.check == YK_LOAD_ANY || check_taps(load, s, bytes + 5, s->answer_bytes - 5);
}

static void judge(yk_load *load, stream *s) {
    yk_load_result *r = &load->result;
    yk_load_slot *slot = slot_at(load);
    uint64_t latency_ns = load->now - s->due_ns;
    r->end_ns = load->alive_ns = load->now;
    /* A server that ends may cancel what it had not begun: with resending that is a lost request, not a wrong answer. */
    if (load->config.resend && (s->grpc_status == GRPC_CANCELLED || s->grpc_status == GRPC_UNAVAILABLE)) {
        say_once(r->first_lost, "request %llu: grpc-status %d", (unsigned long long)s->request, s->grpc_status);
        return;
    }
    s->judged = 1;
    if (s->grpc_status >= 0 && s->grpc_status < 17) r->statuses[s->grpc_status]++;
    if (s->http_status == 200 && s->grpc_status == GRPC_RESOURCE_EXHAUSTED) {
        r->refused++;
        slot->refused++;
        yk_histogram_record(&r->refused_latency, latency_ns);
    } else if (check_answer(load, s)) {
        r->ok++;
        slot->ok++;
        yk_histogram_record(&r->latency, latency_ns);
    } else {
        r->wrong++;
        slot->wrong++;
        return;
    }
    if (latency_ns > slot->max_ns) slot->max_ns = latency_ns;
}

/* ---- streams ---- */

static int may_send(const yk_load *load) { return load->stop_ns == 0 || load->now < load->stop_ns; }

/* A stream is over, or its connection is. */
static void release(stream *s) {
    connection *c = s->on;
    yk_load *load = c->load;
    if (!s->judged) {
        if (load->config.resend && may_send(load)) {
            load->lost[(load->lost_first + load->lost_n++) % load->lost_room] = (lost_request){s->request, s->due_ns};
        } else {
            load->result.failed++;
            slot_at(load)->failed++;
        }
    }
    s->used = 0;
    s->next_free = c->free;
    c->free = s;
    c->open--;
    load->open--;
    relist(c);
}

static ssize_t read_body(nghttp2_session *session, int32_t id, uint8_t *out, size_t room, uint32_t *flags,
                         nghttp2_data_source *source, void *user) {
    stream *s = source->ptr;
    const yk_load_config *config = &s->on->load->config;
    const uint8_t *message = config->requests + config->offsets[s->request];
    size_t bytes = (size_t)(config->offsets[s->request + 1] - config->offsets[s->request]), done = 0;
    const uint8_t prefix[5] = {0, (uint8_t)(bytes >> 24), (uint8_t)(bytes >> 16), (uint8_t)(bytes >> 8), (uint8_t)bytes};
    while (s->uploaded < 5 && done < room) out[done++] = prefix[s->uploaded++];
    if (s->uploaded >= 5) {
        size_t rest = bytes + 5 - s->uploaded, part = rest < room - done ? rest : room - done;
        memcpy(out + done, message + s->uploaded - 5, part);
        s->uploaded += part;
        done += part;
        if (part == rest) *flags |= NGHTTP2_DATA_FLAG_EOF;
    }
    return (ssize_t)done;
}

/* The connection has room. Returns 0, or -1 when nghttp2 does not take it. */
static int begin(connection *c, uint64_t request, uint64_t due_ns, int resent) {
    yk_load *load = c->load;
    stream *s = c->free;
    s->due_ns = due_ns;
    s->request = request;
    s->uploaded = 0;
    s->answer_bytes = 0;
    s->http_status = 0;
    s->grpc_status = -1;
    s->judged = 0;
    s->resent = (uint8_t)resent;
    s->message_bytes = 0;
    nghttp2_data_provider provider = {.source.ptr = s, .read_callback = read_body};
    s->id = nghttp2_submit_request(c->session, NULL, load->headers, load->headers_n, &provider, s);
    if (s->id < 0) return -1;
    c->free = s->next_free;
    s->used = 1;
    c->open++;
    load->open++;
    load->alive_ns = load->now;
    if (resent) {
        load->result.resent++;
    } else {
        load->result.sent++;
        slot_at(load)->sent++;
    }
    relist(c);
    touch(c);
    return 0;
}

static stream *stream_of(nghttp2_session *session, int32_t id) { return nghttp2_session_get_stream_user_data(session, id); }

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_bytes,
                     const uint8_t *value, size_t value_bytes, uint8_t flags, void *user) {
    stream *s = NULL;
    if (name_bytes == 7 && memcmp(name, ":status", 7) == 0) {
        if ((s = stream_of(session, frame->hd.stream_id)) == NULL || value_bytes != 3) return 0;
        s->http_status = (int16_t)((value[0] - '0') * 100 + (value[1] - '0') * 10 + value[2] - '0');
    } else if (name_bytes == 11 && memcmp(name, "grpc-status", 11) == 0) {
        if ((s = stream_of(session, frame->hd.stream_id)) == NULL) return 0;
        int16_t status = 0;
        for (size_t i = 0; i < value_bytes; i++) {
            if (value[i] < '0' || value[i] > '9' || i == 3) return 0;
            status = (int16_t)(status * 10 + value[i] - '0');
        }
        if (value_bytes) s->grpc_status = status;
    } else if (name_bytes == 12 && memcmp(name, "grpc-message", 12) == 0) {
        if ((s = stream_of(session, frame->hd.stream_id)) == NULL) return 0;
        s->message_bytes = (uint8_t)(value_bytes < MESSAGE_BYTES ? value_bytes : MESSAGE_BYTES);
        memcpy(s->message, value, s->message_bytes);
    }
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes, size_t n, void *user) {
    stream *s = stream_of(session, id);
    if (s == NULL) return 0;
    if (s->answer_bytes + n > s->answer_room) {
        size_t room = s->answer_room ? s->answer_room : 128;
        while (room < s->answer_bytes + n) room *= 2;
        uint8_t *more = room <= ANSWER_BYTES_MAX ? realloc(s->answer, room) : NULL;
        if (more == NULL) return NGHTTP2_ERR_CALLBACK_FAILURE;
        s->answer = more;
        s->answer_room = room;
    }
    memcpy(s->answer + s->answer_bytes, bytes, n);
    s->answer_bytes += n;
    return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    connection *c = user;
    yk_load *load = c->load;
    switch (frame->hd.type) {
        case NGHTTP2_DATA:
        case NGHTTP2_HEADERS: {
            if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) return 0;
            stream *s = stream_of(session, frame->hd.stream_id);
            if (s == NULL || s->judged) return 0;
            judge(load, s);
            size_t bytes = (size_t)(load->config.offsets[s->request + 1] - load->config.offsets[s->request]);
            /* An answer before the end of the question: the rest need not be sent. */
            if (s->uploaded < bytes + 5) nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_CANCEL);
            return 0;
        }
        case NGHTTP2_SETTINGS: {
            if (frame->hd.flags & NGHTTP2_FLAG_ACK) return 0;
            uint32_t allowed = nghttp2_session_get_remote_settings(session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
            c->limit = allowed < load->config.streams ? allowed : load->config.streams;
            if (c->phase == GREETING) {
                c->phase = UP;
                load->up++;
                load->result.reconnects += c->was_up;
                c->was_up = 1;
            }
            relist(c);
            touch(c);
            return 0;
        }
        case NGHTTP2_GOAWAY:
            say_once(load->result.first_lost, "the server closes a connection (GOAWAY %s) %.*s",
                     nghttp2_http2_strerror(frame->goaway.error_code), (int)frame->goaway.opaque_data_len,
                     frame->goaway.opaque_data_len ? (const char *)frame->goaway.opaque_data : "");
            if (c->phase == UP) {
                c->phase = DRAINING;
                load->up--;
                relist(c);
                touch(c);
            }
            return 0;
        default: return 0;
    }
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t code, void *user) {
    connection *c = user;
    stream *s = stream_of(session, id);
    if (s == NULL || !s->used || s->id != id) return 0;
    if (!s->judged) say_once(c->load->result.first_lost, "the server resets a stream (%s)", nghttp2_http2_strerror(code));
    release(s);
    touch(c);
    return 0;
}

/* A request that nghttp2 held back and then could not send, since GOAWAY came: no stream was ever opened for it. */
static int on_not_sent(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user) {
    connection *c = user;
    if (frame->hd.type != NGHTTP2_HEADERS) return 0;
    for (uint32_t i = 0; i < c->load->config.streams; i++) {
        stream *s = &c->streams[i];
        if (s->used && s->id == frame->hd.stream_id && nghttp2_session_find_stream(session, s->id) == NULL) release(s);
    }
    touch(c);
    return 0;
}

/* ---- connections ---- */

static void ask(connection *c, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(c->load->epoll, operation, c->fd, &event);
}

static void wait_for(connection *c, int out) {
    if (c->waits == out) return;
    c->waits = (uint8_t)out;
    ask(c, EPOLLIN | (out ? EPOLLOUT : 0), EPOLL_CTL_MOD);
}

/* End a connection; it is made again after a pause. */
static void drop(connection *c, const char *why) {
    yk_load *load = c->load;
    if (c->phase == DOWN) return;
    if (why != NULL) say_once(load->result.first_lost, "%s", why);
    if (c->phase == UP) load->up--;
    c->phase = DOWN;
    relist(c);
    for (uint32_t i = 0; i < load->config.streams; i++) {
        if (c->streams[i].used) release(&c->streams[i]);
    }
    nghttp2_session_del(c->session);
    c->session = NULL;
    if (c->ssl != NULL) tls.free(c->ssl);
    c->ssl = NULL;
    close(c->fd);
    c->fd = -1;
    c->out_at = c->out_bytes = 0;
    c->waits = 0;
    c->retry_ns = load->now + (why == NULL ? 0 : RETRY_NS);
}

static void drop_errno(connection *c, const char *what, int error) {
    char text[YK_LOAD_TEXT];
    snprintf(text, sizeof text, "%s: %s", what, strerror(error));
    drop(c, text);
}

static void start_session(connection *c) {
    yk_load *load = c->load;
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, (uint32_t)WINDOW_BYTES},
    };
    if (nghttp2_session_client_new2(&c->session, load->callbacks, c, load->option) != 0 ||
        nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, sizeof settings / sizeof settings[0]) != 0 ||
        nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, WINDOW_BYTES) != 0) {
        drop(c, "nghttp2 has no memory for a session");
        return;
    }
    c->phase = GREETING;
    touch(c);
}

/* What TLS says of a failed handshake does not pass by itself, so the first one ends a run that has not begun. */
static void drop_tls(connection *c, const char *what) {
    yk_load *load = c->load;
    char text[YK_LOAD_TEXT];
    unsigned long error = tls.last_error();
    const char *reason = error ? tls.error_text(error) : NULL;
    long verified = load->config.ca != NULL ? tls.verify_result(c->ssl) : 0; /* nobody asked otherwise */
    snprintf(text, sizeof text, "TLS: %s%s%s%s%s", what, reason ? ": " : "", reason ? reason : "", verified ? ": " : "",
             verified ? tls.verify_text(verified) : "");
    int fatal = !load->running && (error || verified);
    if (fatal) say_once(load->result.error, "%s", text);
    drop(c, text);
}

static void handshake(connection *c) {
    tls.clear_errors();
    int done = tls.handshake(c->ssl);
    if (done != 1) {
        int error = tls.error(c->ssl, done);
        if (error == ERROR_WANT_READ) return wait_for(c, 0);
        if (error == ERROR_WANT_WRITE) return wait_for(c, 1);
        return drop_tls(c, "handshake failed");
    }
    const unsigned char *protocol;
    unsigned n;
    tls.alpn(c->ssl, &protocol, &n);
    if (n != 2 || memcmp(protocol, "h2", 2) != 0) {
        if (!c->load->running) say_once(c->load->result.error, "TLS: the server does not offer HTTP/2 (ALPN h2)");
        return drop(c, "TLS: the server does not offer HTTP/2 (ALPN h2)");
    }
    wait_for(c, 0);
    start_session(c);
}

static void connected(connection *c) {
    yk_load *load = c->load;
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) return drop_errno(c, "connect", error);
    if (load->ctx == NULL) {
        wait_for(c, 0);
        return start_session(c);
    }
    c->ssl = tls.make(load->ctx);
    if (c->ssl == NULL || tls.set_fd(c->ssl, c->fd) != 1) return drop(c, "TLS: out of memory");
    const char *name = load->config.server_name;
    /* An address is no host name to send or to look for among the certificate's. */
    int named = load->numeric_name ? tls.set_ip(tls.param(c->ssl), name)
                                   : tls.set_host(c->ssl, name) == 1 && tls.ctrl(c->ssl, CTRL_HOST_NAME, 0, (void *)name);
    if (!named) return drop(c, "TLS: the server's name cannot be used");
    tls.connect_state(c->ssl);
    c->phase = HANDSHAKE;
    handshake(c);
}

static void dial(connection *c) {
    yk_load *load = c->load;
    const struct addrinfo *a = load->address;
    const int on = 1;
    c->fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        say_once(load->result.error, "socket: %s", strerror(errno));
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->phase = CONNECTING;
    c->waits = 1;
    ask(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
    if (connect(c->fd, a->ai_addr, a->ai_addrlen) != 0 && errno != EINPROGRESS) drop_errno(c, "connect", errno);
}

/* Hand nghttp2's frames to the socket: what has gathered goes in one send, unless it is more than the buffer holds. */
static void push(connection *c) {
    for (;;) {
        if (c->out_bytes == 0) {
            while (c->out_bytes + FRAME_BYTES <= OUT_BYTES) {
                const uint8_t *frame;
                ssize_t n = nghttp2_session_mem_send(c->session, &frame);
                if (n < 0 || n > FRAME_BYTES) return drop(c, n < 0 ? nghttp2_strerror((int)n) : "a frame is too long");
                if (n == 0) break;
                memcpy(c->out + c->out_bytes, frame, (size_t)n);
                c->out_bytes += (size_t)n;
            }
            if (c->out_bytes == 0) break;
        }
        ssize_t n;
        if (c->ssl == NULL) {
            n = send(c->fd, c->out + c->out_at, c->out_bytes - c->out_at, MSG_NOSIGNAL);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0 && errno == EAGAIN) return wait_for(c, 1);
            if (n < 0) return drop_errno(c, "send", errno);
        } else {
            tls.clear_errors();
            n = tls.write(c->ssl, c->out + c->out_at, (int)(c->out_bytes - c->out_at));
            if (n <= 0) {
                int error = tls.error(c->ssl, (int)n);
                if (error == ERROR_WANT_WRITE) return wait_for(c, 1);
                if (error == ERROR_WANT_READ) return;
                return drop_tls(c, "write failed");
            }
        }
        c->out_at += (size_t)n;
        if (c->out_at == c->out_bytes) c->out_at = c->out_bytes = 0;
    }
    wait_for(c, 0);
    int finished = !nghttp2_session_want_read(c->session) && !nghttp2_session_want_write(c->session);
    if (finished || (c->phase == DRAINING && c->open == 0)) drop(c, NULL);
}

/* One read for each turn, so that no connection starves the others; TLS is read to its end, since epoll does not see what
 * OpenSSL holds. */
static void pull(connection *c) {
    yk_load *load = c->load;
    ssize_t n;
    do {
        if (c->ssl == NULL) {
            n = recv(c->fd, load->in, IN_BYTES, 0);
            if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
            if (n < 0) return drop_errno(c, "recv", errno);
        } else {
            tls.clear_errors();
            n = tls.read(c->ssl, load->in, IN_BYTES);
            if (n <= 0) {
                int error = tls.error(c->ssl, (int)n);
                if (error == ERROR_WANT_READ) return;
                if (error == ERROR_WANT_WRITE) return wait_for(c, 1);
                if (error == 6) n = 0; /* SSL_ERROR_ZERO_RETURN: an orderly end */
                if (n < 0) return drop_tls(c, "read failed");
            }
        }
        if (n == 0) return drop(c, "the server closed a connection");
        ssize_t taken = nghttp2_session_mem_recv(c->session, load->in, (size_t)n);
        touch(c);
        if (taken < 0) return drop(c, nghttp2_strerror((int)taken));
    } while (c->ssl != NULL);
}

static void on_event(connection *c, uint32_t events) {
    if (c->phase == DOWN) return;
    if (c->phase == CONNECTING) return connected(c);
    if (c->phase == HANDSHAKE) return handshake(c);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) pull(c);
    if (events & EPOLLOUT) touch(c);
}

/* ---- what to send when ---- */

static int more_new(const yk_load *load) { return load->config.repeat || load->next < load->config.n; }

static uint64_t next_random(yk_load *load) { /* splitmix64 */
    uint64_t z = load->random += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static void plan_next(yk_load *load) {
    load->next++;
    if (load->config.exponential) {
        double uniform = ((double)(next_random(load) >> 11) + 0.5) * 0x1p-53;
        load->next_due_ns -= log(uniform) * 1e9 / load->config.rate;
    } else if (load->config.rate > 0) {
        load->next_due_ns = (double)load->next * 1e9 / load->config.rate;
    }
}

static uint64_t due_ns(const yk_load *load) { return load->result.start_ns + (uint64_t)load->next_due_ns; }

/* Begin one request on a connection with room: one that was lost, or the next. Returns 0 when there is none, or it failed. */
static int begin_one(connection *c) {
    yk_load *load = c->load;
    if (load->lost_n) {
        lost_request again = load->lost[load->lost_first];
        if (begin(c, again.request, again.due_ns, 1) != 0) return drop(c, "nghttp2 takes no more requests"), 0;
        load->lost_first = (load->lost_first + 1) % load->lost_room;
        load->lost_n--;
        return 1;
    }
    if (!more_new(load)) return 0;
    uint64_t due = load->now;
    if (load->config.rate > 0) {
        due = due_ns(load);
        if (due > load->now || (load->stop_ns && due >= load->stop_ns)) return 0;
    }
    if (begin(c, load->next % load->config.n, due, 0) != 0) return drop(c, "nghttp2 takes no more requests"), 0;
    if (load->config.rate > 0) yk_histogram_record(&load->result.lag, load->now - due);
    plan_next(load);
    return 1;
}

static void send_due(yk_load *load) {
    connection *c;
    while ((c = least_busy(load)) != NULL && begin_one(c)) continue;
}

static void flush(yk_load *load) {
    connection *c = load->dirty;
    load->dirty = NULL;
    while (c != NULL) {
        connection *next = c->next_dirty;
        if (load->config.rate == 0 && load->running && may_send(load)) {
            while (c->phase == UP && c->open < c->limit && begin_one(c)) continue;
        }
        c->dirty = 0;
        if (c->session != NULL) push(c);
        c = next;
    }
}

static int left_to_send(const yk_load *load) {
    if (!may_send(load)) return 0;
    if (load->lost_n) return 1;
    return more_new(load) && !(load->config.rate > 0 && load->stop_ns && due_ns(load) >= load->stop_ns);
}

static void end(yk_load *load) {
    yk_load_result *r = &load->result;
    load->ended = 1;
    r->failed += load->lost_n;
    for (uint64_t i = 0; i < (uint64_t)load->config.connections * load->config.streams; i++) {
        r->unanswered += load->streams[i].used && !load->streams[i].judged;
    }
    if (load->running && load->config.rate > 0) {
        uint64_t until = load->stop_ns && load->stop_ns <= load->now ? load->stop_ns - 1 : load->now;
        for (; more_new(load) && due_ns(load) <= until; plan_next(load)) r->unsent++;
    }
    if (r->end_ns == 0) r->end_ns = load->now;
    /* A pause before the next request, which would be due after the end, belongs to the run. */
    int whole = load->now >= load->stop_ns || (load->config.rate > 0 && more_new(load) && !r->error[0]);
    if (load->stop_ns && whole && r->end_ns < load->stop_ns) r->end_ns = load->stop_ns;
}

static uint64_t wait_ns(yk_load *load, uint64_t until) {
    uint64_t wake = until;
    /* Without room on any connection it is an answer that we wait for, not the clock. */
    if (load->running && load->config.rate > 0 && left_to_send(load) && least_busy(load) != NULL) {
        uint64_t due = due_ns(load) > load->now + load->config.tick_ns ? due_ns(load) : load->now + load->config.tick_ns;
        if (due < wake) wake = due;
    }
    if (load->up < load->config.connections && load->now + RETRY_NS / 2 < wake) wake = load->now + RETRY_NS / 2;
    return wake > load->now ? wake - load->now : 0;
}

static int wait_events(yk_load *load, struct epoll_event *events, uint64_t ns) {
    if (!load->no_pwait2) {
        struct timespec timeout = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
        int n = epoll_pwait2(load->epoll, events, EVENTS, &timeout, NULL);
        if (n >= 0 || errno != ENOSYS) return n;
        load->no_pwait2 = 1; /* before Linux 5.11: milliseconds must do */
    }
    return epoll_wait(load->epoll, events, EVENTS, (int)((ns + 999999) / 1000000));
}

int yk_load_run(yk_load *load, uint64_t slice_ns) {
    struct epoll_event events[EVENTS];
    if (load->ended) return 0;
    load->now = now_ns();
    if (load->begun_ns == 0) load->begun_ns = load->away_ns = load->now;
    uint64_t until = load->now + slice_ns;
    /* Timers may fire late by this much to save power; for one that stands for a request's due time that is too late. */
    int slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    while (load->now < until && !load->ended) {
        if (load->up < load->config.connections) {
            for (uint32_t i = 0; i < load->config.connections; i++) {
                connection *c = &load->connections[i];
                if (c->phase == DOWN && load->now >= c->retry_ns && !load->result.error[0]) dial(c);
            }
        }
        flush(load);
        int n = wait_events(load, events, wait_ns(load, until));
        load->now = now_ns();
        for (int i = 0; i < n; i++) on_event(events[i].data.ptr, events[i].events);

        if (!load->running && load->up == load->config.connections) {
            load->running = 1;
            load->result.start_ns = load->now;
            if (load->config.seconds_ns) load->stop_ns = load->now + load->config.seconds_ns;
            for (uint32_t i = 0; i < load->config.connections; i++) touch(&load->connections[i]);
        }
        if (load->running && load->config.rate > 0 && !load->last_call) {
            load->last_call = !may_send(load);
            send_due(load);
        }
        flush(load);

        if (load->up) {
            load->away_ns = load->now;
        } else {
            load->alive_ns = load->now;
        }
        if ((!load->running && load->now - load->begun_ns > load->config.connect_ns) ||
            (load->running && load->now - load->away_ns > load->config.connect_ns)) {
            say_once(load->result.error, "no connection for %.1f s: %s", (double)load->config.connect_ns / 1e9,
                     load->result.first_lost[0] ? load->result.first_lost : "the server does not answer");
        }
        int stuck = load->open > 0 || load->config.rate == 0 || due_ns(load) <= load->now;
        if (load->running && left_to_send(load) && stuck && load->now - load->alive_ns > load->config.drain_ns)
            say_once(load->result.error, "no answer for %.1f s", (double)load->config.drain_ns / 1e9);
        if (load->result.error[0]) end(load);
        if (!load->running || left_to_send(load)) {
            load->quiet_ns = load->now;
        } else if (load->open == 0 || load->now - load->quiet_ns > load->config.drain_ns) {
            if (!load->ended) end(load);
        }
    }
    if (slack >= 0) prctl(PR_SET_TIMERSLACK, (unsigned long)slack, 0, 0, 0);
    return !load->ended;
}

/* ---- making and freeing ---- */

static void add_header(yk_load *load, const char *name, const char *value) {
    load->headers[load->headers_n++] = (nghttp2_nv){
        (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value),
        NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE,
    };
}

static void set_up_tls(yk_load *load) {
    const yk_load_config *config = &load->config;
    char *error = load->result.error;
    const char *missing = open_tls();
    if (missing != NULL) return say_once(error, "TLS needs %s, which is missing", missing);
    load->ctx = tls.ctx_new(tls.client_method());
    if (load->ctx == NULL) return say_once(error, "TLS: out of memory");
    tls.clear_errors();
    tls.ctx_ctrl(load->ctx, CTRL_MODE, MODE_PARTIAL_MOVING, NULL);
    tls.ctx_ctrl(load->ctx, CTRL_MIN_VERSION, TLS_1_3, NULL);
    tls.ctx_read_bytes(load->ctx, 64 << 10);
    tls.ctx_alpn(load->ctx, (const unsigned char *)"\x02h2", 3);
    if (config->ca != NULL) {
        if (tls.ctx_ca(load->ctx, config->ca, NULL) != 1)
            return say_once(error, "%s: no authority can be read from it", config->ca);
        tls.ctx_verify(load->ctx, 1, NULL);
    }
    if (config->certificate != NULL && tls.ctx_certificate(load->ctx, config->certificate) != 1)
        return say_once(error, "%s: no certificate can be read from it", config->certificate);
    if (config->key != NULL && (tls.ctx_key(load->ctx, config->key, FILE_PEM) != 1 || tls.ctx_check_key(load->ctx) != 1))
        return say_once(error, "%s: no key that belongs to the certificate can be read from it", config->key);
}

static char *copy(yk_load *load, const char *text) {
    if (text == NULL) return NULL;
    char *made = strdup(text);
    if (made == NULL) say_once(load->result.error, "out of memory");
    return made;
}

yk_load *yk_load_new(const yk_load_config *given) {
    yk_load *load = calloc(1, sizeof *load);
    if (load == NULL) return NULL;
    yk_load_config *config = &load->config;
    *config = *given;
    config->host = copy(load, given->host);
    config->port = copy(load, given->port);
    config->authority = copy(load, given->authority);
    config->path = copy(load, given->path);
    config->server_name = copy(load, given->server_name);
    config->ca = copy(load, given->ca);
    config->certificate = copy(load, given->certificate);
    config->key = copy(load, given->key);

    load->random = config->seed;
    load->lost_room = (uint64_t)config->connections * config->streams;
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    load->connections = take(load, config->connections, sizeof *load->connections);
    load->streams = take(load, load->lost_room, sizeof *load->streams);
    load->lost = take(load, load->lost_room, sizeof *load->lost);
    load->levels = take(load, (size_t)config->streams + 1, sizeof *load->levels);
    load->lowest = config->streams;
    for (uint32_t i = 0; load->connections != NULL && load->streams != NULL && i < config->connections; i++) {
        connection *c = &load->connections[i];
        c->load = load;
        c->fd = -1;
        c->limit = config->streams;
        c->streams = &load->streams[(size_t)i * config->streams];
        c->out = take(load, OUT_BYTES, 1);
        for (uint32_t k = config->streams; k-- > 0;) {
            c->streams[k].on = c;
            c->streams[k].next_free = c->free;
            c->free = &c->streams[k];
        }
    }
    if (load->epoll < 0 || nghttp2_session_callbacks_new(&load->callbacks) != 0 || nghttp2_option_new(&load->option) != 0)
        say_once(load->result.error, "out of memory or descriptors");
    if (load->result.error[0]) {
        yk_load_free(load);
        return NULL;
    }
    nghttp2_session_callbacks_set_on_header_callback(load->callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(load->callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(load->callbacks, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(load->callbacks, on_close);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(load->callbacks, on_not_sent);
    /* Closed streams are of no use to a client, and header rules are the server's tests' business. */
    nghttp2_option_set_no_closed_streams(load->option, 1);
    nghttp2_option_set_no_http_messaging(load->option, 1);

    add_header(load, ":method", "POST");
    add_header(load, ":scheme", config->tls ? "https" : "http");
    add_header(load, ":path", config->path);
    add_header(load, ":authority", config->authority);
    add_header(load, "te", "trailers");
    add_header(load, "content-type", "application/grpc");
    if (config->timeout_ms) {
        snprintf(load->timeout, sizeof load->timeout, "%um", config->timeout_ms);
        add_header(load, "grpc-timeout", load->timeout);
    }

    const struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct in6_addr unused;
    int failure = getaddrinfo(config->host, config->port, &hints, &load->address);
    if (failure) say_once(load->result.error, "%s:%s: %s", config->host, config->port, gai_strerror(failure));
    load->numeric_name = config->server_name != NULL && (inet_pton(AF_INET, config->server_name, &unused) == 1 ||
                                                         inet_pton(AF_INET6, config->server_name, &unused) == 1);
    if (config->tls) set_up_tls(load);
    return load;
}

yk_load_result *yk_load_result_of(yk_load *load) { return &load->result; }

void yk_load_free(yk_load *load) {
    if (load == NULL) return;
    for (uint32_t i = 0; load->connections != NULL && i < load->config.connections; i++) {
        connection *c = &load->connections[i];
        nghttp2_session_del(c->session);
        if (c->ssl != NULL) tls.free(c->ssl);
        if (c->load != NULL && c->fd >= 0) close(c->fd);
        free(c->out);
    }
    for (uint64_t i = 0; load->streams != NULL && i < load->lost_room; i++) free(load->streams[i].answer);
    if (load->ctx != NULL) tls.ctx_free(load->ctx);
    if (load->address != NULL) freeaddrinfo(load->address);
    if (load->epoll >= 0) close(load->epoll);
    nghttp2_session_callbacks_del(load->callbacks);
    nghttp2_option_del(load->option);
    free(load->connections);
    free(load->streams);
    free(load->lost);
    free(load->levels);
    free(load->result.slots);
    const char *texts[] = {load->config.host, load->config.port, load->config.authority, load->config.path,
                           load->config.server_name, load->config.ca, load->config.certificate, load->config.key};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) free((char *)texts[i]);
    free(load);
}
