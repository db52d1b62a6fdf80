/* The deny list: why each card is on it stands in the card's slot; the newest changes are kept in a ring, for those who ask what
 * changed. */
#include "engine.h"

static void deny_one(yk_engine *engine, yk_card *card, uint32_t slot, uint8_t reasons, const yk_record *record) {
    if (!card->deny_reasons) {
        card->denied_since_s = (uint32_t)(record->time_us / 1000000);
        engine->denied_cards++;
    } else if (!reasons) {
        card->denied_since_s = 0;
        engine->denied_cards--;
    }
    card->deny_reasons = reasons;
    yk_denial *denial = &engine->denials[engine->denial_count++ % YK_DENIALS];
    if (engine->denial_count > YK_DENIALS) engine->denials_after = denial->sequence; /* what is written over here */
    *denial = (yk_denial){record->sequence, slot, card->denied_since_s, reasons, {0}};
    engine->deny_version = record->sequence;
}

/* A card and its twin are on the list for the same reasons at every sequence. */
void yk_deny(yk_engine *engine, yk_card *card, uint8_t reasons, yk_record *record) {
    record->deny_reasons = reasons;
    if (reasons) record->flags |= YK_FLAG_DENIED;
    if (reasons == card->deny_reasons) return;
    deny_one(engine, card, record->card, reasons, record);
    if (card->twin) deny_one(engine, yk_table_write(&engine->cards, card->twin - 1), card->twin - 1, reasons, record);
}

void yk_recount_denied(yk_engine *engine) {
    engine->denied_cards = 0;
    for (uint32_t slot = 0; slot < engine->cards.count; slot++)
        engine->denied_cards += ((const yk_card *)yk_table_read(&engine->cards, slot))->deny_reasons != 0;
}
