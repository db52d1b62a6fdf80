/* Between the files of SM4, for no one else: the paths and what they share. */
#ifndef YK_SM4_PATHS_H
#define YK_SM4_PATHS_H

#include "sm4.h"

/* The SIMD paths are written with x86's intrinsics; elsewhere their files compile to nothing. */
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define YK_SM4_X86 1
#else
#define YK_SM4_X86 0
#endif

/* What the MAC covers: a prefix of yk_mac_job.message, of one fixed length for each profile, because CBC-MAC is sound only
 * where no message is the beginning of another. */
enum { YK_MAC_MESSAGE_BYTES_PURSE = 22, YK_MAC_MESSAGE_BYTES_ACCOUNT = 32 };

/* Whether there is a key and a known profile, so that a MAC can be right at all. Nothing here is secret. */
static inline int yk_mac_job_is_provable(const yk_mac_job *job) {
    return job->parent != NULL && (job->profile == YK_PROFILE_PURSE || job->profile == YK_PROFILE_ACCOUNT);
}

void yk_mac_batch_generic(yk_mac_job *jobs, size_t n);
void yk_mac_verify_batch_generic(const yk_mac_job *jobs, size_t n, uint8_t *proved);

#if YK_SM4_X86
void yk_mac_batch_avx2_aesni(yk_mac_job *jobs, size_t n);
void yk_mac_verify_batch_avx2_aesni(const yk_mac_job *jobs, size_t n, uint8_t *proved);
void yk_mac_batch_avx2_vaes(yk_mac_job *jobs, size_t n);
void yk_mac_verify_batch_avx2_vaes(const yk_mac_job *jobs, size_t n, uint8_t *proved);
void yk_mac_batch_avx512_gfni(yk_mac_job *jobs, size_t n);
void yk_mac_verify_batch_avx512_gfni(const yk_mac_job *jobs, size_t n, uint8_t *proved);
#endif

#endif
