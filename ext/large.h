/* Large pages for memory that is touched here and there: with small ones nearly every card of a million costs a walk through the
 * page tables, beside the cache miss itself. */
#ifndef YK_LARGE_H
#define YK_LARGE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

enum { YK_LARGE_BYTES = 2 << 20 };

/* A wish: all works without it. What lies on whole large pages gets them when it is first touched. */
static inline void yk_wish_large_pages(void *memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
    uintptr_t first = ((uintptr_t)memory + YK_LARGE_BYTES - 1) / YK_LARGE_BYTES * YK_LARGE_BYTES;
    uintptr_t last = ((uintptr_t)memory + bytes) / YK_LARGE_BYTES * YK_LARGE_BYTES;
    if (memory && first < last) madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

#endif
