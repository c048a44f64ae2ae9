// Sixteen floats at a time: loads, stores, powers of two.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct bf16 {
  uint16_t bits;
};

constexpr int64_t LANES = 16;

// Lanes outside a mask are neither read nor written.

inline __mmask16 first_lanes(int64_t count) {
  return count >= LANES ? 0xFFFF : static_cast<__mmask16>((1u << count) - 1u);
}

#ifdef __SANITIZE_ADDRESS__
// The sanitizer does not see masked instructions: let it see a read of each of their lanes.
template <class T>
inline void watch(const T* memory, __mmask16 mask) {
  for (int i = 0; i < LANES; ++i)
    if (mask >> i & 1) (void)*reinterpret_cast<const volatile uint16_t*>(memory + i);
}
#else
template <class T>
inline void watch(const T*, __mmask16) {}
#endif

inline __m512 load(const float* from, __mmask16 mask) {
  watch(from, mask);
  return _mm512_maskz_loadu_ps(mask, from);
}

inline __m512 load(const bf16* from, __mmask16 mask) {
  watch(from, mask);
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

inline __m256i round_to_bf16(__m512 x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i nearest_even =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i rounded = _mm512_mask_mov_epi32(nearest_even, is_nan, quiet);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}

inline void store(float* to, __m512 x, __mmask16 mask) {
  watch(to, mask);
  _mm512_mask_storeu_ps(to, mask, x);
}

inline void store(bf16* to, __m512 x, __mmask16 mask) {
  watch(to, mask);
  _mm256_mask_storeu_epi16(to, mask, round_to_bf16(x));
}

// 2^x, relative error below 2e-7. Minimax polynomial on [-1/2, 1/2]; the bounds only keep the
// exponent representable: below -150 the result is 0, above 150 infinite. NaN stays NaN because
// it is the second operand of min and max.
inline __m512 exp2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.f), _mm512_min_ps(_mm512_set1_ps(200.f), x));
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.5353362e-4f);
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.3398874e-3f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(9.6184374e-3f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.5503324e-2f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.4022648e-1f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.9314720e-1f));
  y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(y, whole);
}

constexpr float LOG2_E = 1.44269504f;

// x / (1 + exp(-y))
inline __m512 times_sigmoid(__m512 x, __m512 y) {
  const __m512 power = exp2(_mm512_mul_ps(y, _mm512_set1_ps(-LOG2_E)));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.f), power));
}

template <class T>
float sum_of_squares(const T* row, int64_t width) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += LANES) {
    const __m512 x = load(row + c, first_lanes(width - c));
    sum = _mm512_fmadd_ps(x, x, sum);
  }
  return _mm512_reduce_add_ps(sum);
}

}  // namespace
