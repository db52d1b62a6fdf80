#include "table.h"

#include "large.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { FREE = 0, MARKED = 1, COPYING = 2 };
enum { PAGES_PER_BLOCK = YK_LARGE_BYTES / YK_PAGE_BYTES };

int yk_table_init(yk_table *table, uint32_t slot_bytes, uint32_t slots_max) {
    memset(table, 0, sizeof *table);
    table->slot_bytes = slot_bytes;
    table->page_shift = (uint32_t)__builtin_ctz(YK_PAGE_BYTES / slot_bytes);
    table->pages_max = (slots_max >> table->page_shift) + 1;
    /* Only pointers are set aside for the largest table, so that they never move under the second thread. */
    table->pages = calloc(table->pages_max, sizeof *table->pages);
    table->blocks = calloc(table->pages_max / PAGES_PER_BLOCK + 1, sizeof *table->blocks);
    table->changed = calloc(table->pages_max, 1);
    table->frozen = calloc(table->pages_max, sizeof *table->frozen);
    table->copies = calloc(table->pages_max, sizeof *table->copies);
    return table->pages && table->blocks && table->changed && table->frozen && table->copies ? 0 : -1;
}

void yk_table_free(yk_table *table) {
    if (table->copies)
        for (uint32_t page = 0; page < table->pages_max; page++) free(table->copies[page]);
    if (table->blocks)
        for (uint32_t block = 0; block <= table->pages_max / PAGES_PER_BLOCK; block++) free(table->blocks[block]);
    free(table->pages);
    free(table->blocks);
    free(table->changed);
    free((void *)table->frozen);
    free(table->copies);
    free(table->frozen_pages);
    memset(table, 0, sizeof *table);
}

static int make_page(yk_table *table, uint32_t page) {
    if (page >= table->pages_max) return -1;
    if (table->pages[page]) return 0;
    uint8_t **block = &table->blocks[page / PAGES_PER_BLOCK];
    if (!*block) {
        *block = aligned_alloc(YK_LARGE_BYTES, YK_LARGE_BYTES);
        if (!*block) return -1;
        yk_wish_large_pages(*block, YK_LARGE_BYTES);
    }
    uint8_t *made = *block + (size_t)(page % PAGES_PER_BLOCK) * YK_PAGE_BYTES;
    memset(made, 0, YK_PAGE_BYTES);
    table->pages[page] = made;
    return 0;
}

int yk_table_make(yk_table *table, uint32_t slot) {
    if (!yk_table_has(table, slot) && make_page(table, slot >> table->page_shift) != 0) return -1;
    if (slot >= table->count) table->count = slot + 1;
    return 0;
}

int yk_table_reserve(yk_table *table, uint32_t more) {
    for (uint32_t slot = 0; slot < more; slot++)
        if (make_page(table, (table->count + slot) >> table->page_shift) != 0) return -1;
    return 0;
}

void *yk_table_append(yk_table *table) {
    if (make_page(table, table->count >> table->page_shift) != 0) return NULL;
    return yk_table_write(table, table->count++);
}

void yk_table_save_page(yk_table *table, uint32_t page) {
    uint8_t marked = MARKED;
    if (atomic_compare_exchange_strong(&table->frozen[page], &marked, COPYING)) {
        uint8_t *copy = malloc(YK_PAGE_BYTES);
        while (!copy) { /* Without the copy the photograph would lie; without the write the tap would. Wait for memory. */
            sched_yield();
            copy = malloc(YK_PAGE_BYTES);
        }
        memcpy(copy, table->pages[page], YK_PAGE_BYTES);
        table->copies[page] = copy;
        atomic_store_explicit(&table->frozen[page], FREE, memory_order_release);
        return;
    }
    while (atomic_load_explicit(&table->frozen[page], memory_order_acquire) == COPYING) sched_yield();
}

int64_t yk_table_freeze(yk_table *table) {
    uint32_t pages = (uint32_t)(((uint64_t)table->count + (1u << table->page_shift) - 1) >> table->page_shift);
    uint32_t *list = realloc(table->frozen_pages, (pages + 1) * sizeof *list);
    if (!list) return -1;
    table->frozen_pages = list;
    table->frozen_count = 0;
    for (uint32_t page = 0; page < pages; page++) {
        if (!table->changed[page]) continue;
        table->changed[page] = 0;
        list[table->frozen_count++] = page;
        atomic_store_explicit(&table->frozen[page], MARKED, memory_order_release);
    }
    return table->frozen_count;
}

uint32_t yk_table_frozen_page(yk_table *table, uint32_t i, uint8_t *out) {
    uint32_t page = table->frozen_pages[i];
    uint8_t marked = MARKED;
    if (atomic_compare_exchange_strong(&table->frozen[page], &marked, COPYING)) {
        memcpy(out, table->pages[page], YK_PAGE_BYTES);
        atomic_store_explicit(&table->frozen[page], FREE, memory_order_release);
        return page;
    }
    while (atomic_load_explicit(&table->frozen[page], memory_order_acquire) == COPYING) sched_yield();
    memcpy(out, table->copies[page], YK_PAGE_BYTES);
    free(table->copies[page]);
    table->copies[page] = NULL;
    return page;
}

void yk_table_thaw(yk_table *table) {
    for (uint32_t i = 0; i < table->frozen_count; i++) {
        uint32_t page = table->frozen_pages[i];
        atomic_store_explicit(&table->frozen[page], FREE, memory_order_release);
        free(table->copies[page]);
        table->copies[page] = NULL;
        table->changed[page] = 1;
    }
    table->frozen_count = 0;
}

int yk_table_restore_page(yk_table *table, uint32_t page, const uint8_t *bytes) {
    if (make_page(table, page) != 0) return -1;
    memcpy(table->pages[page], bytes, YK_PAGE_BYTES);
    return 0;
}
