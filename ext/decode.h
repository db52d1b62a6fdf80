/* Bytes of gRPC requests to taps: a protobuf reader for the two hot requests, and the checks of form. */
#ifndef YK_DECODE_H
#define YK_DECODE_H

#include "types.h"

/* What makes a whole request unreadable; everything else is a matter of the one tap. */
enum {
    YK_DECODE_TRUNCATED = -1,   /* a length or a varint runs past the end */
    YK_DECODE_BAD_TAG = -2,     /* field number 0, an unknown wire type, an unmatched or too deep group, an endless varint */
    YK_DECODE_NO_TAP = -3,      /* AuthorizeTapRequest without `tap`, SubmitTapsRequest without `taps` */
    YK_DECODE_TOO_MANY = -4,    /* more taps than fit */
    YK_DECODE_TAP_TWICE = -5,   /* AuthorizeTapRequest with two of `tap` */
    /* and three that a caller of the decoder adds (engine.pyx) */
    YK_DEADLINE_OVER = -6,      /* nobody waits any more: it was not read */
    YK_NOT_OWN = -7,            /* a tap of somebody else than the caller */
    YK_KEY_AWAY = -8,           /* whoever holds the key of a tap does not answer */
};

typedef struct {
    uint64_t now_local_s;    /* seconds since 1970, UTC, of the core's clock */
    uint32_t clock_ahead_s_max;
    uint32_t taps_max;
} yk_decode_rules;

/* Decode AuthorizeTapRequest (stored = 0) or SubmitTapsRequest (stored = 1). Returns how many taps were written, or one of
 * the codes above. */
int yk_decode_request(const uint8_t *bytes, size_t n, int stored, const yk_decode_rules *rules, yk_tap *taps);

/* Decode one Tap message and check its form: sets result and invalid_field. Returns 0 or a code above. */
int yk_decode_tap(const uint8_t *bytes, size_t n, const yk_decode_rules *rules, yk_tap *tap);

/* Digits to a card number. Returns 0, or -1 where it is empty, longer than 20, or not all digits. */
int yk_card_number_parse(const uint8_t *text, size_t n, yk_card_number *number);

/* A card number to digits; returns how many (text has room for 20). */
size_t yk_card_number_print(const yk_card_number *number, char *text);

/* Local date YYYYMMDD and time hhmmss (UTC+8) to seconds since 1970, UTC; -1 where there is no such date or time.
 * The years are 2000 to 2099. */
int64_t yk_local_seconds(uint32_t date, uint32_t time);

#endif
