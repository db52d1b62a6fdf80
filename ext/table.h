/* A growing table of fixed-size slots in pages, one writer, that can be photographed while it is written.
 *
 * yk_table_freeze marks what changed since the last photograph; that costs nothing but a pass over the page states. A second
 * thread then copies the marked pages one by one (yk_table_frozen_page), and the writer, before it first changes a marked
 * page, copies that page itself. So the photograph is exactly the table at the moment of the freeze, and nobody waits for
 * longer than the copy of one page. */
#ifndef YK_TABLE_H
#define YK_TABLE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { YK_PAGE_BYTES = 16384 };

typedef struct {
    uint32_t slot_bytes;
    uint32_t page_shift;     /* a page holds 1 << page_shift slots: dividing would cost more than the look into the page */
    uint32_t pages_max;
    uint32_t count;          /* slots in use */
    uint8_t **pages;
    uint8_t **blocks;        /* what they lie in, many in each */
    uint8_t *changed;        /* page: changed since the last freeze */
    _Atomic uint8_t *frozen; /* page: FREE, MARKED, or COPYING */
    uint8_t **copies;        /* page: the writer's copy of a marked page, until it is fetched */
    uint32_t *frozen_pages;  /* which pages the freeze marked */
    uint32_t frozen_count;
} yk_table;

/* `slot_bytes`: a power of two. 0, or -1 when memory ran out. */
int yk_table_init(yk_table *table, uint32_t slot_bytes, uint32_t slots_max);
void yk_table_free(yk_table *table);

/* Memory for one slot wherever it is: a table that is written here and there counts up to the last of these. 0, or -1. */
int yk_table_make(yk_table *table, uint32_t slot);

/* Whether there is memory for the slot. */
static inline int yk_table_has(const yk_table *table, uint32_t slot) { return table->pages[slot >> table->page_shift] != NULL; }

/* Memory for `more` slots, so that appending them cannot fail. 0, or -1. */
int yk_table_reserve(yk_table *table, uint32_t more);

/* Room for one more slot at index `count`, zeroed; NULL when the table is full or memory ran out. Counts it. */
void *yk_table_append(yk_table *table);

static inline size_t yk_table_offset(const yk_table *table, uint32_t slot) {
    return (size_t)(slot & ((1u << table->page_shift) - 1)) * table->slot_bytes;
}

static inline const void *yk_table_read(const yk_table *table, uint32_t slot) {
    return table->pages[slot >> table->page_shift] + yk_table_offset(table, slot);
}

void yk_table_save_page(yk_table *table, uint32_t page);

/* The only way to a slot that is to be changed. */
static inline void *yk_table_write(yk_table *table, uint32_t slot) {
    uint32_t page = slot >> table->page_shift;
    if (atomic_load_explicit(&table->frozen[page], memory_order_acquire)) yk_table_save_page(table, page);
    table->changed[page] = 1;
    return table->pages[page] + yk_table_offset(table, slot);
}

/* Writer's thread: begin a photograph; returns how many pages it holds. -1: memory ran out. */
int64_t yk_table_freeze(yk_table *table);
/* Any one thread: copy the i-th page of the photograph to `out` (YK_PAGE_BYTES), once each; returns its page number. */
uint32_t yk_table_frozen_page(yk_table *table, uint32_t i, uint8_t *out);
/* Writer's thread: the photograph came to nothing; its pages count as changed again. */
void yk_table_thaw(yk_table *table);

/* Restore: put a page in place as it was saved. 0, or -1 for a page number that is out of range or no memory. */
int yk_table_restore_page(yk_table *table, uint32_t page, const uint8_t *bytes);

#endif
