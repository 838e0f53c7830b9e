/* Vectors of float32, 16 numbers wide with AVX-512 and 8 with AVX2: what the kernels are written in. */
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#ifdef __AVX512F__
#define LANES 16
typedef __m512 floats;
typedef __m512i ints;
#define load(p) _mm512_loadu_ps(p)
#define store(p, v) _mm512_storeu_ps(p, v)
#define load_ints(p) _mm512_loadu_si512(p)
#define all(x) _mm512_set1_ps(x)
#define all_ints(x) _mm512_set1_epi32(x)
#define zero_ints() _mm512_setzero_si512()
#define subtract_ints(a, b) _mm512_sub_epi32(a, b)
#define to_floats(a) _mm512_cvtepi32_ps(a)
#define fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define max(a, b) _mm512_max_ps(a, b)
#define min(a, b) _mm512_min_ps(a, b)
#define rounded(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define times_power_of_2(a, n) _mm512_scalef_ps(a, n)
#define zero_unless_above(a, b, value) _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), value)
#define unless_nan(x, value) _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x)
#define load_float16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define load_bfloat16(p) \
    (floats) _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))), 16)
#define sum_of(v) _mm512_reduce_add_ps(v)
#define largest_of(v) _mm512_reduce_max_ps(v)
#define any_nan(v) (_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0)
#else
#define LANES 8
typedef __m256 floats;
typedef __m256i ints;
#define load(p) _mm256_loadu_ps(p)
#define store(p, v) _mm256_storeu_ps(p, v)
#define load_ints(p) _mm256_loadu_si256((const __m256i *)(p))
#define all(x) _mm256_set1_ps(x)
#define all_ints(x) _mm256_set1_epi32(x)
#define zero_ints() _mm256_setzero_si256()
#define subtract_ints(a, b) _mm256_sub_epi32(a, b)
#define to_floats(a) _mm256_cvtepi32_ps(a)
#define fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define max(a, b) _mm256_max_ps(a, b)
#define min(a, b) _mm256_min_ps(a, b)
#define rounded(a) _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define times_power_of_2(a, n) \
    (a) * (floats) _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)
#define zero_unless_above(a, b, value) _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), value)
#define unless_nan(x, value) _mm256_blendv_ps(value, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q))
#define load_float16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define load_bfloat16(p) \
    (floats) _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16)
#define any_nan(v) (_mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0)

INLINE float sum_of(floats v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

INLINE float largest_of(floats v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}
#endif

/* e^x, exact to 2 units in the last place, 0 below -87 and no number where x is none (Moshier's Cephes library: the coefficients of expf). */
INLINE floats exponential(floats x) {
    floats least = all(-87.0f), bounded = max(min(x, all(88.0f)), least);
    floats n = rounded(bounded * all(1.44269504f));
    floats r = fma(n, all(-0.693359375f), bounded);
    r = fma(n, all(2.12194440e-4f), r);
    floats y = all(1.9875691500e-4f);
    y = fma(y, r, all(1.3981999507e-3f));
    y = fma(y, r, all(8.3334519073e-3f));
    y = fma(y, r, all(4.1665795894e-2f));
    y = fma(y, r, all(1.6666665459e-1f));
    y = fma(y, r, all(5.0000001201e-1f));
    y = fma(y, r * r, r + all(1.0f));
    y = times_power_of_2(y, n);
    return unless_nan(x, zero_unless_above(x, least, y));
}

/* The nearest bfloat16, ties to even; what is no number stays none. */
INLINE uint16_t to_bfloat16(float x) {
    union { float number; uint32_t bits; } u = {x};
    if (x != x) return 0x7fc0;
    return (uint16_t)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16);
}
