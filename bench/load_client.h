/* A gRPC load generator: one thread, epoll, nghttp2's client side. Requests stand ready in memory, answers are read and judged
 * here, and every latency goes into a histogram. Times are nanoseconds of CLOCK_MONOTONIC. */
#ifndef YK_LOAD_CLIENT_H
#define YK_LOAD_CLIENT_H

#include <stddef.h>
#include <stdint.h>

/* ---- histogram ---- */

/* Log-linear: 1 ns wide below 2,048 ns, then 1,024 buckets for each doubling, so that a bucket is never wider than a thousandth
 * of its value. Reaches 2^37 ns; what is above 100 s counts as 100 s. */
#define YK_HISTOGRAM_BUCKETS 28672
#define YK_HISTOGRAM_NS_MAX 100000000000ull

typedef struct {
    uint64_t counts[YK_HISTOGRAM_BUCKETS];
    uint64_t n;
    uint64_t max_ns;
    double sum_ns;
} yk_histogram;

void yk_histogram_record(yk_histogram *histogram, uint64_t ns);

/* The largest value that falls into a bucket. */
uint64_t yk_histogram_upper_ns(uint32_t bucket);

/* The value that `percent` of all recorded ones do not exceed, to a thousandth and never above the maximum; 0 when empty. */
uint64_t yk_histogram_percentile_ns(const yk_histogram *histogram, double percent);

/* ---- a run ---- */

enum { YK_LOAD_ANY, YK_LOAD_TAPS };

typedef struct {
    const char *host; /* numeric address */
    const char *port;
    const char *authority;
    const char *path;
    const char *server_name; /* what the certificate must be for, when `ca` is given */
    const char *ca, *certificate, *key;
    int tls;

    uint32_t connections;
    uint32_t streams;   /* requests in flight per connection, at most */
    double rate;        /* requests a second; 0 is the closed loop */
    int exponential;    /* gaps of a Poisson process instead of equal ones */
    uint64_t seed;      /* of those gaps */
    uint64_t tick_ns;   /* open loop: what is due sooner than this waits to be sent together */

    const uint8_t *requests; /* messages without the gRPC prefix, one after the other; they outlive the run */
    const int64_t *offsets;  /* n + 1 of them */
    uint64_t n;
    int repeat; /* begin again after the last; then seconds bounds the run */

    uint64_t seconds_ns; /* nothing is sent after this; 0 is without end */
    uint64_t drain_ns;   /* how long answers are waited for after the last request */
    uint64_t connect_ns; /* how long the first connections, and later a server that is away, are waited for */
    uint32_t timeout_ms; /* grpc-timeout; 0 sends none */

    int check;           /* YK_LOAD_TAPS judges AuthorizeTapResponse and SubmitTapsResponse; YK_LOAD_ANY the status alone */
    int64_t charged_fen; /* of each tap; -1 is not checked */
    int resend;          /* send again what was lost with a connection */
} yk_load_config;

#define YK_LOAD_SLOT_NS 100000000ull
#define YK_LOAD_RESULTS 256
#define YK_LOAD_TEXT 320

/* What happened in 100 ms. */
typedef struct {
    uint64_t sent, ok, refused, wrong, failed;
    uint64_t max_ns; /* longest latency of an answer that came in this slot, ok or refused */
} yk_load_slot;

typedef struct {
    uint64_t sent;       /* requests that were begun, each once */
    uint64_t ok;         /* answers that passed the check */
    uint64_t refused;    /* RESOURCE_EXHAUSTED */
    uint64_t wrong;      /* all other answers */
    uint64_t failed;     /* lost with a connection or a reset stream, and not sent again */
    uint64_t unanswered; /* still open when the run ended */
    uint64_t unsent;     /* due, and never begun */
    uint64_t resent;
    uint64_t reconnects; /* connections made again after one was lost */
    uint64_t taps;       /* accepted taps in ok answers */
    uint64_t statuses[17];
    uint64_t results[YK_LOAD_RESULTS]; /* taps by result code; the last takes all above */
    uint64_t start_ns, end_ns;         /* end: when the last answer came, or when seconds_ns were over if that is later */
    yk_histogram latency, refused_latency;
    yk_histogram lag; /* open loop: from due to begun */
    yk_load_slot *slots;
    uint32_t slots_n, slots_room;
    char first_wrong[YK_LOAD_TEXT];
    char first_lost[YK_LOAD_TEXT]; /* why the first connection or stream was lost */
    char error[YK_LOAD_TEXT];      /* why the run ended early, or never began */
} yk_load_result;

typedef struct yk_load yk_load;

/* A run, not begun; NULL when memory or descriptors are short. Strings are copied, requests and offsets are not. */
yk_load *yk_load_new(const yk_load_config *config);

/* Go on for about `slice_ns`. Returns 1 while there is more to do, 0 at the end; then the result is complete. */
int yk_load_run(yk_load *load, uint64_t slice_ns);

yk_load_result *yk_load_result_of(yk_load *load);
void yk_load_free(yk_load *load);

#endif
