/* libFuzzer target: the protobuf reader (ext/decode.c) on any bytes.
 *
 * Besides what the sanitizers see, it must never write more taps than there is room for, point only into its input, name only
 * fields that there are, and say the same when it is asked again, at any alignment. */
#include "../../ext/decode.h"

#include <stdlib.h>
#include <string.h>

enum { TAPS_MAX = 8, FIELD_MAX = 25, GUARD = 0xa5 };

static const yk_decode_rules rules = {1735700000, 300, TAPS_MAX};

static void demand(int holds) {
    if (!holds) abort();
}

static void check_tap(const yk_tap *tap, const uint8_t *bytes, size_t n) {
    demand(tap->invalid_field <= FIELD_MAX);
    demand((tap->result != 0) == (tap->invalid_field != 0));
    demand(tap->card == YK_NONE && tap->terminal == YK_NONE);
    if (tap->message) demand(tap->message >= bytes && tap->message_bytes <= n && tap->message + tap->message_bytes <= bytes + n);
    if (tap->result) return;
    demand(tap->local_s <= rules.now_local_s + rules.clock_ahead_s_max);
    demand(yk_local_seconds(tap->local_date, tap->local_time) == (int64_t)tap->local_s);
    char text[20];
    yk_card_number again;
    size_t digits = yk_card_number_print(&tap->number, text);
    demand(digits >= 1 && digits <= sizeof text);
    demand(yk_card_number_parse((const uint8_t *)text, digits, &again) == 0);
    demand(memcmp(&again, &tap->number, sizeof again) == 0);
}

static void check_request(const uint8_t *bytes, size_t n, const uint8_t *copy, int stored) {
    yk_tap taps[TAPS_MAX + 1], others[TAPS_MAX + 1];
    memset(taps, GUARD, sizeof taps);
    memset(others, GUARD, sizeof others);
    int count = yk_decode_request(bytes, n, stored, &rules, taps);
    demand(count >= YK_DECODE_TAP_TWICE && count <= TAPS_MAX && count != 0);
    demand(memcmp(&taps[TAPS_MAX], &others[TAPS_MAX], sizeof taps[0]) == 0); /* the one behind was not touched */
    demand(yk_decode_request(copy, n, stored, &rules, others) == count);
    for (int i = 0; i < count; i++) {
        demand(taps[i].stored == stored && taps[i].message != NULL);
        check_tap(&taps[i], bytes, n);
        demand(taps[i].message - bytes == others[i].message - copy);
        others[i].message = taps[i].message;
        demand(memcmp(&taps[i], &others[i], sizeof taps[i]) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    uint8_t *shifted = malloc(n + 1); /* the end of the input is the end of the allocation, for the sanitizer */
    if (!shifted) return 0;
    if (n) memcpy(shifted + 1, bytes, n);
    check_request(bytes, n, shifted + 1, 0);
    check_request(bytes, n, shifted + 1, 1);

    yk_tap tap, other;
    int error = yk_decode_tap(bytes, n, &rules, &tap);
    demand(error <= 0 && error >= YK_DECODE_BAD_TAG);
    demand(yk_decode_tap(shifted + 1, n, &rules, &other) == error);
    demand(memcmp(&tap, &other, sizeof tap) == 0);
    if (!error) check_tap(&tap, bytes, n);
    free(shifted);
    return 0;
}
