/* SM3, four messages at a time, with what every processor of the architecture has (SSE2, NEON). */
#define LANES 4
#define TARGET
#define ROWS_NAME yk_sm3_rows_lanes4
#include "sm3_lanes.h"
