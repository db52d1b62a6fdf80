#include "decode.h"

#include <string.h>

/* ---- reading protobuf ------------------------------------------------------------------------------------------- */

/* A reader never passes `end`; once it has failed it stays failed and reads as empty. */
typedef struct {
    const uint8_t *at;
    const uint8_t *end;
    int error;
} reader;

enum { WIRE_VARINT = 0, WIRE_I64 = 1, WIRE_BYTES = 2, WIRE_GROUP = 3, WIRE_END_GROUP = 4, WIRE_I32 = 5 };
enum { GROUP_DEPTH_MAX = 32 };

static void fail(reader *r, int error) {
    if (!r->error) r->error = error;
    r->at = r->end;
}

static inline uint64_t read_varint_of(reader *r, unsigned bytes_max) {
    uint64_t value = 0;
    const uint8_t *at = r->at;
    for (unsigned shift = 0; shift < 7 * bytes_max; shift += 7) {
        if (at == r->end) {
            fail(r, YK_DECODE_TRUNCATED);
            return 0;
        }
        uint8_t byte = *at++;
        value |= (uint64_t)(byte & 0x7f) << shift; /* what would not fit into 64 bits falls off, as in protobuf */
        if (byte < 0x80) {
            r->at = at;
            return value;
        }
    }
    fail(r, YK_DECODE_BAD_TAG);
    return 0;
}

/* Tags and lengths have 5 bytes at most, padding included: protobuf reads no longer ones, and what the journal keeps whole must
 * be readable to it. */
static uint64_t read_varint(reader *r) { return read_varint_of(r, 10); }
static uint64_t read_short_varint(reader *r) { return read_varint_of(r, 5); }

static const uint8_t *read_bytes(reader *r, size_t *n) {
    uint64_t length = read_short_varint(r);
    if (length > (uint64_t)(r->end - r->at)) {
        fail(r, YK_DECODE_TRUNCATED);
        *n = 0;
        return r->end;
    }
    const uint8_t *bytes = r->at;
    r->at += length;
    *n = length;
    return bytes;
}

/* Field number and wire type; field 0 with an error. */
static uint32_t read_tag(reader *r, unsigned *wire) {
    uint64_t tag = read_short_varint(r);
    *wire = tag & 7;
    if (r->error) return 0;
    if (tag >> 3 == 0 || tag > UINT32_MAX) {
        fail(r, YK_DECODE_BAD_TAG);
        return 0;
    }
    return (uint32_t)(tag >> 3);
}

static void skip_fixed(reader *r, size_t n) {
    if ((size_t)(r->end - r->at) < n) {
        fail(r, YK_DECODE_TRUNCATED);
        return;
    }
    r->at += n;
}

/* Skip a field that is not known, or that is known with another wire type (protobuf treats the two alike). */
static void skip_field(reader *r, uint32_t field, unsigned wire) {
    uint32_t open[GROUP_DEPTH_MAX];
    unsigned depth = 0;
    for (;;) {
        size_t n;
        switch (wire) {
        case WIRE_VARINT: read_varint(r); break;
        case WIRE_I64: skip_fixed(r, 8); break;
        case WIRE_BYTES: read_bytes(r, &n); break;
        case WIRE_I32: skip_fixed(r, 4); break;
        case WIRE_GROUP:
            if (depth == GROUP_DEPTH_MAX) fail(r, YK_DECODE_BAD_TAG);
            else open[depth++] = field;
            break;
        case WIRE_END_GROUP:
            if (depth == 0 || open[depth - 1] != field) fail(r, YK_DECODE_BAD_TAG);
            else depth--;
            break;
        default: fail(r, YK_DECODE_BAD_TAG);
        }
        if (r->error || depth == 0) return;
        field = read_tag(r, &wire);
        if (r->error) return;
    }
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

int yk_card_number_parse(const uint8_t *text, size_t n, yk_card_number *number) {
    memset(number, 0, sizeof *number);
    if (n < 1 || n > 20) return -1;
    uint64_t high = 0, low = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t digit = (uint8_t)(text[i] - '0');
        if (digit > 9) return -1;
        high = high << 4 | low >> 60;
        low = low << 4 | digit;
    }
    number->low = low;
    number->high = (uint16_t)high;
    number->digits = (uint8_t)n;
    return 0;
}

size_t yk_card_number_print(const yk_card_number *number, char *text) {
    for (unsigned i = 0; i < number->digits; i++) {
        unsigned place = number->digits - 1u - i;
        unsigned digit = place < 16 ? number->low >> (4 * place) & 15 : number->high >> (4 * (place - 16)) & 15;
        text[i] = (char)('0' + digit);
    }
    return number->digits;
}

int64_t yk_local_seconds(uint32_t date, uint32_t time) {
    static const uint8_t month_days[13] = {0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    uint32_t year = date / 10000, month = date / 100 % 100, day = date % 100;
    uint32_t hour = time / 10000, minute = time / 100 % 100, second = time % 100;
    if (year < 2000 || year > 2099 || month < 1 || month > 12 || day < 1 || day > month_days[month]) return -1;
    if (month == 2 && day == 29 && year % 4 != 0) return -1; /* 2000 was a leap year: every fourth is, up to 2099 */
    if (hour > 23 || minute > 59 || second > 59) return -1;
    /* Days since 1970-01-01, counting years from March so that the leap day is a year's last. */
    uint32_t y = month <= 2 ? year - 1 : year, m = month <= 2 ? month + 9 : month - 3;
    int64_t days = 365 * (int64_t)y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
    return days * 86400 + hour * 3600 + minute * 60 + second - 8 * 3600;
}

/* ---- one tap ---------------------------------------------------------------------------------------------------- */

/* Field numbers of Tap in proto/yikatong/v1/tap_service.proto. */
enum {
    TAP_CARD_NUMBER = 1, TAP_ISSUER_ID, TAP_PROFILE, TAP_ALGORITHM_ID, TAP_KEY_VERSION, TAP_KEY_INDEX, TAP_TRANSACTION_TYPE,
    TAP_AMOUNT, TAP_AMOUNT_DUE, TAP_CHIP_BEFORE, TAP_CHIP_AFTER, TAP_ATC, TAP_TERMINAL_NUMBER, TAP_TERMINAL_SEQUENCE,
    TAP_LOCAL_TIME, TAP_MAC, TAP_KIND, TAP_LINE, TAP_STOP, TAP_DIRECTION, TAP_CITY, TAP_INDUSTRY, TAP_RIDER, TAP_TRANSFER,
    TAP_TEST, TAP_GREY, TAP_FIELD_END
};

/* Wire type of each field; anything else under that number is skipped as unknown. */
static const uint8_t tap_wire[TAP_FIELD_END] = {
    [TAP_CARD_NUMBER] = WIRE_BYTES, [TAP_ISSUER_ID] = WIRE_BYTES, [TAP_TERMINAL_NUMBER] = WIRE_BYTES, [TAP_MAC] = WIRE_BYTES,
    [TAP_TRANSFER] = WIRE_BYTES, /* the others are varints: 0 */
};

/* Values as they stand in the message, before they are checked; a field that is not there reads as its default. */
typedef struct {
    const uint8_t *bytes[TAP_FIELD_END];
    size_t length[TAP_FIELD_END];
    uint64_t number[TAP_FIELD_END];
    int overwrote_text; /* a card number that is not ASCII, and another one after it */
} raw_tap;

enum { CITY_MAX = 9999, STOP_MAX = 0xffffff, INDUSTRY_MAX = 9, RIDER_MAX = 7, KIND_MAX = 4, DIRECTION_MAX = 2 };

/* An amount is an int64 on the wire, and what the MAC covers is 4 bytes: negative or larger is malformed. */
static int amount_fits(uint64_t value) { return value <= UINT32_MAX; }

static void malformed(yk_tap *tap, uint8_t result, uint8_t field) {
    if (tap->result) return; /* the first fault is the one that is told */
    tap->result = result;
    tap->invalid_field = field;
}

/* Check the form of every field, in the order of the result codes' precedence, and fill the tap. */
static void check_form(const raw_tap *raw, const yk_decode_rules *rules, yk_tap *tap) {
    const uint64_t *number = raw->number;

    if (yk_card_number_parse(raw->bytes[TAP_CARD_NUMBER], raw->length[TAP_CARD_NUMBER], &tap->number) != 0 || raw->overwrote_text)
        malformed(tap, YK_MALFORMED_CARD_NUMBER, TAP_CARD_NUMBER);
    if (raw->length[TAP_ISSUER_ID] != sizeof tap->issuer_id) malformed(tap, YK_MALFORMED_ISSUER_ID, TAP_ISSUER_ID);
    else memcpy(tap->issuer_id, raw->bytes[TAP_ISSUER_ID], sizeof tap->issuer_id);

    int32_t profile = (int32_t)number[TAP_PROFILE];
    if (profile != 1 && profile != 2) malformed(tap, YK_MALFORMED_PROFILE, TAP_PROFILE);
    for (uint8_t field = TAP_ALGORITHM_ID; field <= TAP_KEY_INDEX; field++)
        if ((uint32_t)number[field] > 255) malformed(tap, YK_MALFORMED_KEY, field);
    uint32_t type = (uint32_t)number[TAP_TRANSACTION_TYPE];
    if (type != YK_TYPE_PURCHASE && type != YK_TYPE_COMPOUND)
        malformed(tap, YK_MALFORMED_TRANSACTION_TYPE, TAP_TRANSACTION_TYPE);
    for (uint8_t field = TAP_AMOUNT; field <= TAP_CHIP_AFTER; field++)
        if (!amount_fits(number[field])) malformed(tap, YK_MALFORMED_AMOUNT, field);
    if ((uint32_t)number[TAP_ATC] > UINT16_MAX) malformed(tap, YK_MALFORMED_ATC, TAP_ATC);

    if (raw->length[TAP_TERMINAL_NUMBER] != sizeof tap->terminal_number)
        malformed(tap, YK_MALFORMED_TERMINAL, TAP_TERMINAL_NUMBER);
    else memcpy(tap->terminal_number, raw->bytes[TAP_TERMINAL_NUMBER], sizeof tap->terminal_number);

    uint64_t when = number[TAP_LOCAL_TIME];
    tap->local_date = when <= 99991231235959 ? (uint32_t)(when / 1000000) : 0;
    tap->local_time = when <= 99991231235959 ? (uint32_t)(when % 1000000) : 0;
    int64_t local_s = yk_local_seconds(tap->local_date, tap->local_time);
    if (local_s < 0) malformed(tap, YK_MALFORMED_TIME, TAP_LOCAL_TIME);
    else if ((uint64_t)local_s > rules->now_local_s + rules->clock_ahead_s_max)
        malformed(tap, YK_MALFORMED_CLOCK_AHEAD, TAP_LOCAL_TIME);
    tap->local_s = local_s < 0 ? 0 : (uint64_t)local_s;

    if (raw->length[TAP_MAC] != sizeof tap->mac) malformed(tap, YK_MALFORMED_MAC, TAP_MAC);
    else memcpy(tap->mac, raw->bytes[TAP_MAC], sizeof tap->mac);

    int32_t kind = (int32_t)number[TAP_KIND], direction = (int32_t)number[TAP_DIRECTION];
    int32_t rider = (int32_t)number[TAP_RIDER];
    if (kind < 1 || kind > KIND_MAX) malformed(tap, YK_MALFORMED_KIND, TAP_KIND);
    if ((uint32_t)number[TAP_STOP] > STOP_MAX) malformed(tap, YK_MALFORMED_PLACE, TAP_STOP);
    if (direction < 0 || direction > DIRECTION_MAX) malformed(tap, YK_MALFORMED_PLACE, TAP_DIRECTION);
    if ((uint32_t)number[TAP_CITY] > CITY_MAX) malformed(tap, YK_MALFORMED_PLACE, TAP_CITY);
    if ((uint32_t)number[TAP_INDUSTRY] > INDUSTRY_MAX) malformed(tap, YK_MALFORMED_PLACE, TAP_INDUSTRY);
    if (rider < 0 || rider > RIDER_MAX) malformed(tap, YK_MALFORMED_RIDER, TAP_RIDER);

    tap->profile = (uint8_t)profile;
    tap->algorithm_id = (uint8_t)number[TAP_ALGORITHM_ID];
    tap->key_version = (uint8_t)number[TAP_KEY_VERSION];
    tap->key_index = (uint8_t)number[TAP_KEY_INDEX];
    tap->transaction_type = (uint8_t)type;
    tap->amount_fen = (uint32_t)number[TAP_AMOUNT];
    tap->amount_due_fen = (uint32_t)number[TAP_AMOUNT_DUE];
    tap->chip_before_fen = (uint32_t)number[TAP_CHIP_BEFORE];
    tap->chip_after_fen = (uint32_t)number[TAP_CHIP_AFTER];
    tap->atc = (uint16_t)number[TAP_ATC];
    tap->terminal_sequence = (uint32_t)number[TAP_TERMINAL_SEQUENCE];
    tap->kind = (uint8_t)kind;
    tap->line = (uint32_t)number[TAP_LINE];
    tap->stop = (uint32_t)number[TAP_STOP];
    tap->direction = (uint8_t)direction;
    tap->city = (uint16_t)number[TAP_CITY];
    tap->industry = (uint8_t)number[TAP_INDUSTRY];
    tap->rider = (uint8_t)rider;
    tap->test = number[TAP_TEST] != 0;
    tap->grey = number[TAP_GREY] != 0;
}

/* Transfer is kept as part of the message, but it must be readable. */
static int check_transfer(const uint8_t *bytes, size_t n) {
    reader r = {bytes, bytes + n, 0};
    while (r.at < r.end) {
        unsigned wire;
        uint32_t field = read_tag(&r, &wire);
        if (r.error) break;
        skip_field(&r, field, wire);
    }
    return r.error;
}

static int is_ascii(const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i] > 127) return 0;
    return 1;
}

int yk_decode_tap(const uint8_t *bytes, size_t n, const yk_decode_rules *rules, yk_tap *tap) {
    raw_tap raw;
    memset(&raw, 0, sizeof raw);
    memset(tap, 0, sizeof *tap);
    tap->card = tap->terminal = YK_NONE;
    reader r = {bytes, bytes + n, 0};
    while (r.at < r.end) {
        unsigned wire;
        uint32_t field = read_tag(&r, &wire);
        if (r.error) break;
        if (field >= TAP_FIELD_END || wire != tap_wire[field]) {
            skip_field(&r, field, wire);
        } else if (wire == WIRE_BYTES) {
            /* Of a repeated field the last counts. But protobuf reads no message with text that is not UTF-8 in any of them. */
            if (field == TAP_CARD_NUMBER && !is_ascii(raw.bytes[field], raw.length[field])) raw.overwrote_text = 1;
            raw.bytes[field] = read_bytes(&r, &raw.length[field]);
            if (field == TAP_TRANSFER && !r.error) {
                tap->keep_message = 1;
                int error = check_transfer(raw.bytes[field], raw.length[field]);
                if (error) fail(&r, error);
            }
        } else {
            raw.number[field] = read_varint(&r);
        }
    }
    if (r.error) return r.error;
    check_form(&raw, rules, tap);
    return 0;
}

/* ---- a request -------------------------------------------------------------------------------------------------- */

int yk_decode_request(const uint8_t *bytes, size_t n, int stored, const yk_decode_rules *rules, yk_tap *taps) {
    reader r = {bytes, bytes + n, 0};
    uint32_t count = 0;
    while (r.at < r.end) {
        unsigned wire;
        uint32_t field = read_tag(&r, &wire);
        if (r.error) break;
        if (field != 1 || wire != WIRE_BYTES) { /* field 1 of both requests holds the taps */
            skip_field(&r, field, wire);
            continue;
        }
        size_t length;
        const uint8_t *message = read_bytes(&r, &length);
        if (r.error) break;
        if (!stored && count == 1) return YK_DECODE_TAP_TWICE;
        if (count == rules->taps_max) return YK_DECODE_TOO_MANY;
        yk_tap *tap = &taps[count++];
        int error = yk_decode_tap(message, length, rules, tap);
        if (error) return error;
        tap->stored = (uint8_t)stored;
        tap->message = message;
        tap->message_bytes = (uint32_t)length;
    }
    if (r.error) return r.error;
    return count ? (int)count : YK_DECODE_NO_TAP;
}
