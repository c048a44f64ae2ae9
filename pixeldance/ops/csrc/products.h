// Matrix products in registers, over 32-bit words: one float, or two bfloat16 that one instruction
// multiplies and adds.

#pragma once

#include "vectors.h"

namespace {

template <class T>
constexpr int64_t PER_WORD = 4 / sizeof(T);

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

inline __m512 multiply_add(float, __m512i a, __m512i b, __m512 sum) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}

#ifdef __AVX512BF16__
inline __m512 multiply_add(bf16, __m512i a, __m512i b, __m512 sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#endif

// Rows of a tile that is `vectors` vectors wide: up to 24 accumulators of the 32 registers.
constexpr int tile_rows(int vectors) { return vectors == 4 ? 6 : 12; }

// c[R][16 C] (+)= a[R][words] b[words][16 C]
template <class T, int R, int C>
inline void multiply_tile(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                          int64_t words, float* c, int64_t c_stride, bool add) {
  __m512 sums[R][C];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j)
      sums[r][j] = add ? _mm512_loadu_ps(c + r * c_stride + j * LANES) : _mm512_setzero_ps();
  for (int64_t w = 0; w < words; ++w) {
    __m512i columns[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) columns[j] = _mm512_loadu_si512(b + w * b_stride + j * LANES);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const __m512i row = _mm512_set1_epi32(static_cast<int>(a[r * a_stride + w]));
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) sums[r][j] = multiply_add(T{}, row, columns[j], sums[r][j]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) _mm512_storeu_ps(c + r * c_stride + j * LANES, sums[r][j]);
}

// The last rows, fewer than a tile has.
template <class T, int R, int C>
inline void multiply_rest(int64_t rows, const uint32_t* a, int64_t a_stride, const uint32_t* b,
                          int64_t b_stride, int64_t words, float* c, int64_t c_stride, bool add) {
  if constexpr (R > 0) {
    if (rows == R)
      multiply_tile<T, R, C>(a, a_stride, b, b_stride, words, c, c_stride, add);
    else
      multiply_rest<T, R - 1, C>(rows, a, a_stride, b, b_stride, words, c, c_stride, add);
  }
}

template <class T, int C>
inline void multiply_columns(int64_t rows, const uint32_t* a, int64_t a_stride, const uint32_t* b,
                             int64_t b_stride, int64_t words, float* c, int64_t c_stride,
                             bool add) {
  constexpr int R = tile_rows(C);
  int64_t r = 0;
  for (; r + R <= rows; r += R)
    multiply_tile<T, R, C>(a + r * a_stride, a_stride, b, b_stride, words, c + r * c_stride,
                           c_stride, add);
  multiply_rest<T, R - 1, C>(rows - r, a + r * a_stride, a_stride, b, b_stride, words,
                             c + r * c_stride, c_stride, add);
}

// c[rows][columns] (+)= a[rows][words] b[words][columns]; `columns` is a multiple of the lanes.
template <class T>
inline void multiply(int64_t rows, int64_t columns, const uint32_t* a, int64_t a_stride,
                     const uint32_t* b, int64_t b_stride, int64_t words, float* c,
                     int64_t c_stride, bool add) {
  int64_t j = 0;
  for (; j + 4 * LANES <= columns; j += 4 * LANES)
    multiply_columns<T, 4>(rows, a, a_stride, b + j, b_stride, words, c + j, c_stride, add);
  for (; j + 2 * LANES <= columns; j += 2 * LANES)
    multiply_columns<T, 2>(rows, a, a_stride, b + j, b_stride, words, c + j, c_stride, add);
  for (; j < columns; j += LANES)
    multiply_columns<T, 1>(rows, a, a_stride, b + j, b_stride, words, c + j, c_stride, add);
}

}  // namespace
