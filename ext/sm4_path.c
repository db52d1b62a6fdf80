/* Which SM4 path runs: what the processor can do, what the environment or a test asks for, and the call through. */
#include "sm4_paths.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if YK_SM4_X86
#include <cpuid.h>
#endif

/* ---- what this processor can run -------------------------------------------------------------------------------- */

typedef struct {
    int avx2_aesni;
    int avx2_vaes;
    int avx512_gfni;
} features;

#if YK_SM4_X86
/* The registers that the operating system saves on a task switch (XCR0); without that a path may not touch them. */
static uint64_t saved_registers(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* cpuid is asked directly: not every supported compiler's __builtin_cpu_supports knows VAES and GFNI by name. */
static features detect(void) {
    enum { AES = 1u << 25, OSXSAVE = 1u << 27, AVX = 1u << 28 };                                    /* leaf 1, ecx */
    enum { AVX2 = 1u << 5, AVX512F = 1u << 16, AVX512BW = 1u << 30 };                               /* leaf 7, ebx */
    enum { GFNI = 1u << 8, VAES = 1u << 9 };                                                        /* leaf 7, ecx */
    enum { XMM_YMM = 0x06, XMM_YMM_ZMM = 0xe6 };                                                    /* XCR0 */
    const uint32_t avx512vl = 1u << 31;                                                             /* leaf 7, ebx */
    features found = {0, 0, 0};
    uint32_t a, b, c, d, basic;
    if (!__get_cpuid(1, &a, &b, &basic, &d) || !(basic & OSXSAVE) || !(basic & AVX)) return found;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    uint64_t saved = saved_registers();

    int avx2 = (b & AVX2) && (saved & XMM_YMM) == XMM_YMM;
    int avx512 = avx2 && (b & AVX512F) && (b & AVX512BW) && (b & avx512vl) && (saved & XMM_YMM_ZMM) == XMM_YMM_ZMM;
    found.avx2_aesni = avx2 && (basic & AES);
    found.avx2_vaes = found.avx2_aesni && (c & VAES);
    found.avx512_gfni = avx512 && (c & GFNI);
    return found;
}
#else
static features detect(void) { return (features){0, 0, 0}; }
#endif

/* ---- the paths, fastest first ----------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    int (*is_runnable)(features);
    void (*compute)(yk_mac_job *jobs, size_t n);
    void (*verify)(const yk_mac_job *jobs, size_t n, uint8_t *proved);
} path;

#if YK_SM4_X86
static int runs_avx512_gfni(features found) { return found.avx512_gfni; }
static int runs_avx2_vaes(features found) { return found.avx2_vaes; }
static int runs_avx2_aesni(features found) { return found.avx2_aesni; }
#endif
static int runs_always(features found) {
    (void)found;
    return 1;
}

static const path PATHS[] = {
#if YK_SM4_X86
    {"avx512-gfni", runs_avx512_gfni, yk_mac_batch_avx512_gfni, yk_mac_verify_batch_avx512_gfni},
    {"avx2-vaes", runs_avx2_vaes, yk_mac_batch_avx2_vaes, yk_mac_verify_batch_avx2_vaes},
    {"avx2-aesni", runs_avx2_aesni, yk_mac_batch_avx2_aesni, yk_mac_verify_batch_avx2_aesni},
#endif
    {"generic", runs_always, yk_mac_batch_generic, yk_mac_verify_batch_generic},
};
enum { PATH_COUNT = sizeof PATHS / sizeof PATHS[0] };

/* The path of that name, or with NULL the fastest, if it can run. */
static const path *find(const char *name) {
    features found = detect();
    for (size_t i = 0; i < PATH_COUNT; i++)
        if (PATHS[i].is_runnable(found) && (name == NULL || strcmp(PATHS[i].name, name) == 0)) return &PATHS[i];
    return NULL;
}

/* Chosen at the first question and kept, so that every batch of a process takes the same way. Threads that ask at the same
 * time find the same answer, so it does not matter whose is stored. NULL as long as nothing was chosen, and for good where
 * the environment asks for what cannot run. */
static _Atomic(const path *) chosen;

static const path *choose(void) {
    const path *now = atomic_load_explicit(&chosen, memory_order_acquire);
    if (now != NULL) return now;
    const char *asked = getenv("YIKATONG_SM4_PATH");
    now = find(asked != NULL && *asked != '\0' ? asked : NULL); /* set to nothing means not set, as shells have it */
    if (now != NULL) atomic_store_explicit(&chosen, now, memory_order_release);
    return now;
}

const char *yk_sm4_path(void) {
    const path *now = choose();
    return now == NULL ? NULL : now->name;
}

int yk_sm4_path_force(const char *name) {
    const path *wanted = name == NULL ? NULL : find(name);
    if (wanted == NULL) return -1;
    atomic_store_explicit(&chosen, wanted, memory_order_release);
    return 0;
}

const char *yk_sm4_path_runnable(size_t i) {
    features found = detect();
    for (size_t k = 0; k < PATH_COUNT; k++)
        if (PATHS[k].is_runnable(found) && i-- == 0) return PATHS[k].name;
    return NULL;
}

/* ---- the call through ------------------------------------------------------------------------------------------- */

void yk_wipe(void *memory, size_t bytes) {
    memset(memory, 0, bytes);
    __asm__ __volatile__("" : : "r"(memory) : "memory"); /* the compiler must take the zeros to be read here */
}

/* What a path keeps in named arrays it wipes itself; what the compiler spilled, no C code can name. The frames of the call
 * that just returned lay where this array lies now, so it is overwritten as a whole. The deepest path takes 12 KiB when
 * optimised; a build without optimisation takes more, and is for debugging only. tests/sm4_residue.c looks at the result. */
__attribute__((noinline)) static void wipe_dead_stack(void) {
    uint8_t dead[16 * 1024];
    yk_wipe(dead, sizeof dead);
}

/* Extensions ask yk_sm4_path when they are imported and refuse to start on NULL. One that forgot must not go on with a path
 * that nobody asked for, nor report every tap as forged. */
static const path *choose_or_abort(void) {
    const path *now = choose();
    if (now == NULL) {
        fprintf(stderr, "YIKATONG_SM4_PATH names an SM4 path that cannot run here\n");
        abort();
    }
    return now;
}

void yk_mac_batch(yk_mac_job *jobs, size_t n) {
    if (n == 0) return;
    choose_or_abort()->compute(jobs, n);
    wipe_dead_stack();
}

void yk_mac_verify_batch(const yk_mac_job *jobs, size_t n, uint8_t *proved) {
    if (n == 0) return;
    choose_or_abort()->verify(jobs, n, proved);
    wipe_dead_stack();
}
