/* SM3 (GB/T 32905) of many messages of one length at a time, as the leaves and nodes of a Merkle tree are. */
#ifndef YK_SM3_H
#define YK_SM3_H

#include <stddef.h>
#include <stdint.h>

enum { YK_SM3_BYTES = 32, YK_SM3_ROW_BYTES_MAX = 1024 };

/* The digest of one message of any length. */
void yk_sm3(const uint8_t *message, size_t message_bytes, uint8_t digest[YK_SM3_BYTES]);

/* digests[i] = SM3(prefix ‖ row i), for n rows of row_bytes (at most YK_SM3_ROW_BYTES_MAX) that lie one behind the other. */
void yk_sm3_rows(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests);

/* The path that works on rows, the i-th one that this processor can run (NULL: no more; fastest first), and the way for tests
 * to choose one: 0, or -1 where it cannot run here. */
const char *yk_sm3_path(void);
const char *yk_sm3_path_runnable(size_t i);
int yk_sm3_path_force(const char *name);

#endif
