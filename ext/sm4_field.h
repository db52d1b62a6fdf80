/* SM4 in the coordinates of AES: why one AES instruction can be SM4's S-box, and the constants that follow.
 *
 * Both S-boxes invert in a field of 256 elements between two affine maps; only the field's polynomial and the maps differ.
 * The two fields are isomorphic, so with a root of SM4's polynomial x^8+x^7+x^6+x^5+x^4+x^2+1 in AES's field, there are
 * linear maps IN and OUT of bits and constants such that for every byte
 *
 *     S(x) = OUT(AES_S(IN(x) + IN_CONSTANT)) + OUT_CONSTANT.
 *
 * Eight roots exist, and because 1/(ky) = (1/k)(1/y) any k of 255 may scale IN and OUT: 2,040 choices.
 *
 * The paths here do not apply IN and OUT in each round. They keep the whole cipher in the coordinates after IN ("hat" words:
 * IN of each byte, and for words of the block, not of the key, plus IN_CONSTANT). Exclusive or is the same there, the
 * constant of three words that are added is the constant again, and AESENCLAST can be applied at once. What follows it,
 * OUT, then L, then IN, is linear, so it is lookups of nibbles. Written by bytes, with Z a rotation of the word by 8 bits,
 *
 *     L = P (1 + Z^3) + R (1 + Z + Z^2)    where P(b) = b + (b >> 6) and R(b) = b rotated left by 2
 *     L' = 1 + Z (b << 5) + Z^2 ((b >> 3) + (b << 7)) + Z^3 (b >> 1),
 *
 * so a round of the cipher costs two pairs of lookups, where one would expect IN, OUT and seven shifts. Since
 * 1 + Z^3 = Z^3 (1 + Z), with q = Z^3 P + R it is q + Zq + Z^2 R: three rotations.
 *
 * Of the 2,040 choices this is the one (root 0x86, k = 63) in which b << 5 after OUT sees only the low nibble, so that the
 * key schedule does with seven lookups instead of eight. tests/test_sm4.py derives every constant of this file again. */
#ifndef YK_SM4_FIELD_H
#define YK_SM4_FIELD_H

#include <stdint.h>

static const uint32_t IN_CONSTANT = 0x24242424;

/* FK (GB/T 32907-2016 clause 7.3) as a hat word of the block: added to a derived key, which is such a word as well, the
 * constants cancel and what remains is a hat word of the key. CK as hat words of the block: its constant is what a sum of
 * words of the key needs before AESENCLAST. */
static const uint32_t FK_HAT[4] = {0x853e0e2d, 0x1082b84f, 0xbbe1ffa0, 0xef8ed277};
static const uint32_t CK_HAT[32] = {
    0x249d9a26, 0x2134338f, 0x88319cac, 0x277f3505, 0x8e37301b, 0x1cc8cfb2, 0xb50c87b7, 0x1a42c9f9,
    0xb30a0db1, 0xb6f5f24e, 0x49f0ba8a, 0x0159f4c4, 0x4ff6f18c, 0x8b5f5873, 0x74cd4676, 0x3c64efdf,
    0x72cbcc70, 0x776265d9, 0xde677b4b, 0xc098d2e2, 0x69d0d74d, 0x4a9e99e4, 0xe35ad1e1, 0xfda52e1e,
    0x54edea56, 0x51a3a418, 0x1fa6ecdc, 0x570f1323, 0xa811166b, 0x6cb8bf25, 0x229b1020, 0x6a32b989,
};

/* ---- lookups by nibble, for after AESENCLAST (AVX2) --------------------------------------------------------------- */

/* IN without its constant, and the way back. */
static const uint8_t HAT_LOW[16] = {0x00, 0xe6, 0x37, 0xd1, 0x68, 0x8e, 0x5f, 0xb9, 0xe1, 0x07, 0xd6, 0x30, 0x89, 0x6f, 0xbe, 0x58};
static const uint8_t HAT_HIGH[16] = {0x00, 0x8c, 0xc1, 0x4d, 0xe7, 0x6b, 0x26, 0xaa, 0xb1, 0x3d, 0x70, 0xfc, 0x56, 0xda, 0x97, 0x1b};
static const uint8_t UNHAT_LOW[16] = {0x00, 0x41, 0x15, 0x54, 0x5d, 0x1c, 0x48, 0x09, 0x87, 0xc6, 0x92, 0xd3, 0xda, 0x9b, 0xcf, 0x8e};
static const uint8_t UNHAT_HIGH[16] = {0x00, 0x23, 0x28, 0x0b, 0xab, 0x88, 0x83, 0xa0, 0xca, 0xe9, 0xe2, 0xc1, 0x61, 0x42, 0x49, 0x6a};

/* IN P OUT and IN R OUT; OUT_CONSTANT drops out of the one and is in the low table of the other. */
static const uint8_t CIPHER_P_LOW[16] = {0x00, 0xc1, 0x5f, 0x9e, 0x28, 0xe9, 0x77, 0xb6, 0x2c, 0xed, 0x73, 0xb2, 0x04, 0xc5, 0x5b, 0x9a};
static const uint8_t CIPHER_P_HIGH[16] = {0x00, 0xc0, 0xad, 0x6d, 0xa7, 0x67, 0x0a, 0xca, 0x47, 0x87, 0xea, 0x2a, 0xe0, 0x20, 0x4d, 0x8d};
static const uint8_t CIPHER_R_LOW[16] = {0xb3, 0x02, 0xde, 0x6f, 0x10, 0xa1, 0x7d, 0xcc, 0x5c, 0xed, 0x31, 0x80, 0xff, 0x4e, 0x92, 0x23};
static const uint8_t CIPHER_R_HIGH[16] = {0x00, 0x57, 0x71, 0x26, 0xa1, 0xf6, 0xd0, 0x87, 0x86, 0xd1, 0xf7, 0xa0, 0x27, 0x70, 0x56, 0x01};

/* IN (byte maps of L') OUT, by the power of Z; the constants are in KEY_0_LOW, and KEY_1_HIGH would be all zeros. */
static const uint8_t KEY_0_LOW[16] = {0x9a, 0x5b, 0xc5, 0x04, 0x85, 0x44, 0xda, 0x1b, 0x67, 0xa6, 0x38, 0xf9, 0x78, 0xb9, 0x27, 0xe6};
static const uint8_t KEY_0_HIGH[16] = {0x00, 0x26, 0x4b, 0x6d, 0x76, 0x50, 0x3d, 0x1b, 0x70, 0x56, 0x3b, 0x1d, 0x06, 0x20, 0x4d, 0x6b};
static const uint8_t KEY_1_LOW[16] = {0x00, 0x00, 0x56, 0x56, 0x70, 0x70, 0x26, 0x26, 0xc1, 0xc1, 0x97, 0x97, 0xb1, 0xb1, 0xe7, 0xe7};
static const uint8_t KEY_2_LOW[16] = {0x00, 0x68, 0x00, 0x68, 0xb3, 0xdb, 0xb3, 0xdb, 0x83, 0xeb, 0x83, 0xeb, 0x30, 0x58, 0x30, 0x58};
static const uint8_t KEY_2_HIGH[16] = {0x00, 0x89, 0x58, 0xd1, 0xe3, 0x6a, 0xbb, 0x32, 0xe4, 0x6d, 0xbc, 0x35, 0x07, 0x8e, 0x5f, 0xd6};
static const uint8_t KEY_3_LOW[16] = {0x00, 0x8c, 0xd1, 0x5d, 0x34, 0xb8, 0xe5, 0x69, 0x4b, 0xc7, 0x9a, 0x16, 0x7f, 0xf3, 0xae, 0x22};
static const uint8_t KEY_3_HIGH[16] = {0x00, 0x4d, 0xc4, 0x89, 0xc2, 0x8f, 0x06, 0x4b, 0x6b, 0x26, 0xaf, 0xe2, 0xa9, 0xe4, 0x6d, 0x20};

/* ---- the same maps as bit matrices, for after an inversion without affine map (GFNI) ------------------------------- */

/* As GF2P8AFFINEQB wants them: the row for output bit 0 in the highest byte. */
static const uint64_t HAT_MATRIX = 0xea43531482cf6df9, UNHAT_MATRIX = 0x5fd80ee4067085c8;
static const uint64_t CIPHER_P_MATRIX = 0xa867d695e30af5ac, CIPHER_R_MATRIX = 0x07af8b6cd0184d3d;
static const uint64_t KEY_0_MATRIX = 0x6479c8952f14277e, KEY_1_MATRIX = 0x8fe3e30024c7ab8f;
static const uint64_t KEY_2_MATRIX = 0x2b34f8d0f9b24bd3, KEY_3_MATRIX = 0x8b0b1799243fc950;
/* The constants that go with CIPHER_R and KEY_0: immediate operands, so they must be macros. */
#define CIPHER_R_CONSTANT 0xbf
#define KEY_0_CONSTANT 0xe7

#endif
