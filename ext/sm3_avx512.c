/* SM3, sixteen messages at a time: AVX-512, whose rotations and three-way logic the compiler finds by itself. */
#if defined(__x86_64__)
#define LANES 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,prefer-vector-width=512")))
#define ROWS_NAME yk_sm3_rows_avx512
#include "sm3_lanes.h"
#endif
