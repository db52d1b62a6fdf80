/* SM3, eight messages at a time: AVX2. */
#if defined(__x86_64__)
#define LANES 8
#define TARGET __attribute__((target("avx2")))
#define ROWS_NAME yk_sm3_rows_avx2
#include "sm3_lanes.h"
#endif
