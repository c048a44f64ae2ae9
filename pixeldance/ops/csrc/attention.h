// Attention.
//
// FlashAttention's algorithm (arXiv 2205.14135, algorithm 1): blocks of queries against blocks of
// keys with a running maximum. Keys and values are packed beforehand for the products.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "products.h"

namespace {

constexpr int64_t TILE_KEYS = 4 * LANES;
constexpr int64_t QUERY_BLOCK = 8 * tile_rows(4);
constexpr int64_t KEY_BLOCK = 2 * TILE_KEYS;
constexpr int64_t MAX_HEAD_DIM = 256;

// One of query, key, value, output: `batch tokens heads head_dim`, head_dim contiguous.
template <class T>
struct Heads {
  T* data;
  int64_t batch_stride, token_stride, head_stride;
  T* at(int64_t batch, int64_t token, int64_t head) const {
    return data + batch * batch_stride + token * token_stride + head * head_stride;
  }
};

template <class T>
inline uint32_t word_of(const T* low, const T* high) {
  uint32_t word = 0;
  std::memcpy(&word, low, sizeof(T));
  if (PER_WORD<T> == 2 && high) {
    uint16_t half;
    std::memcpy(&half, high, sizeof(half));
    word |= static_cast<uint32_t>(half) << 16;
  }
  return word;
}

template <class T>
class Attention {
 public:
  Heads<const T> query, key, value;
  Heads<T> out;
  const float* bias;  // `batch keys`, or null
  int64_t batch, heads, queries, keys, head_dim;
  float scale;
  uint32_t* packed;  // of packed_words()

  int64_t packed_words() const { return batch * heads * (key_words() + value_words()); }

  void run(int threads) const {
    const int64_t tiles = padded_keys() / TILE_KEYS;
    const int64_t blocks = (queries + QUERY_BLOCK - 1) / QUERY_BLOCK;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for
      for (int64_t i = 0; i < batch * heads * tiles; ++i) pack(i / tiles, i % tiles * TILE_KEYS);
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < batch * heads * blocks; ++i)
        attend(i / blocks, i % blocks * QUERY_BLOCK);
    }
  }

 private:
  int64_t padded_keys() const { return round_up(keys, TILE_KEYS); }
  int64_t words() const { return (head_dim + PER_WORD<T> - 1) / PER_WORD<T>; }  // of a query
  int64_t columns() const { return round_up(head_dim, LANES); }                 // of the output
  int64_t key_words() const { return padded_keys() * words(); }
  int64_t value_words() const { return padded_keys() / PER_WORD<T> * columns(); }

  // Layout `tile word key`.
  uint32_t* packed_keys(int64_t bh) const { return packed + bh * (key_words() + value_words()); }
  // Layout `key/PER_WORD column`: a word holds the same channel of neighbouring keys.
  uint32_t* packed_values(int64_t bh) const { return packed_keys(bh) + key_words(); }

  void pack(int64_t bh, int64_t from) const {
    const int64_t b = bh / heads, h = bh % heads;
    uint32_t* to = packed_keys(bh) + from * words();
    for (int64_t n = 0; n < TILE_KEYS; ++n) {
      const T* row = from + n < keys ? key.at(b, from + n, h) : nullptr;
      for (int64_t w = 0; w < words(); ++w) {
        const int64_t c = w * PER_WORD<T>;
        const T* high = row && c + 1 < head_dim ? row + c + 1 : nullptr;
        to[w * TILE_KEYS + n] = row ? word_of(row + c, high) : 0;
      }
    }
    to = packed_values(bh) + from / PER_WORD<T> * columns();
    for (int64_t n = from; n < from + TILE_KEYS; n += PER_WORD<T>, to += columns()) {
      std::memset(to, 0, columns() * sizeof(uint32_t));
      if (n >= keys) continue;
      const T* low = value.at(b, n, h);
      const T* high = n + 1 < keys ? value.at(b, n + 1, h) : nullptr;
      for (int64_t c = 0; c < head_dim; ++c) to[c] = word_of(low + c, high ? high + c : nullptr);
    }
  }

  void attend(int64_t bh, int64_t from) const {
    const int64_t b = bh / heads, h = bh % heads;
    const int64_t rows = std::min(QUERY_BLOCK, queries - from);
    alignas(64) uint32_t rows_in[QUERY_BLOCK * MAX_HEAD_DIM];
    alignas(64) float logits[QUERY_BLOCK * KEY_BLOCK];
    alignas(64) uint32_t weights[QUERY_BLOCK * KEY_BLOCK / PER_WORD<T>];
    alignas(64) float sums[QUERY_BLOCK * MAX_HEAD_DIM];
    float maxima[QUERY_BLOCK], totals[QUERY_BLOCK];

    for (int64_t r = 0; r < rows; ++r) {
      rows_in[r * words() + words() - 1] = 0;
      std::memcpy(rows_in + r * words(), query.at(b, from + r, h), head_dim * sizeof(T));
      maxima[r] = -std::numeric_limits<float>::infinity();
      totals[r] = 0.f;
    }
    for (int64_t k = 0; k < padded_keys(); k += KEY_BLOCK) {
      const int64_t count = std::min(KEY_BLOCK, padded_keys() - k);
      for (int64_t t = 0; t < count; t += TILE_KEYS)
        multiply<T>(rows, TILE_KEYS, rows_in, words(), packed_keys(bh) + (k + t) * words(),
                    TILE_KEYS, words(), logits + t, KEY_BLOCK, false);
      const float* block_bias = bias ? bias + b * keys + k : nullptr;
      T* row_weights = reinterpret_cast<T*>(weights);
      for (int64_t r = 0; r < rows; ++r, row_weights += KEY_BLOCK) {
        const float factor = soften(logits + r * KEY_BLOCK, block_bias, std::min(count, keys - k),
                                    count, row_weights, maxima[r], totals[r]);
        if (k > 0 && factor != 1.f) rescale(sums + r * columns(), factor);
      }
      multiply<T>(rows, columns(), weights, KEY_BLOCK / PER_WORD<T>,
                  packed_values(bh) + k / PER_WORD<T> * columns(), columns(), count / PER_WORD<T>,
                  sums, columns(), k > 0);
    }
    for (int64_t r = 0; r < rows; ++r) {
      rescale(sums + r * columns(), 1.f / totals[r]);
      T* to = out.at(b, from + r, h);
      for (int64_t c = 0; c < head_dim; c += LANES)
        store(to + c, _mm512_loadu_ps(sums + r * columns() + c), first_lanes(head_dim - c));
    }
  }

  void rescale(float* row, float factor) const {
    for (int64_t c = 0; c < columns(); c += LANES)
      _mm512_storeu_ps(row + c, _mm512_mul_ps(_mm512_loadu_ps(row + c), _mm512_set1_ps(factor)));
  }

  // Weights of `count` keys, of which `real` exist, relative to the running maximum of the row.
  // Returns what the sums so far have to be multiplied with.
  float soften(float* logits, const float* block_bias, int64_t real, int64_t count, T* weights,
               float& maximum, float& total) const {
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const __m512 to_log2 = _mm512_set1_ps(scale * LOG2_E);
    __m512 largest = lowest;
    for (int64_t n = 0; n < count; n += LANES) {
      const __mmask16 mask = n < real ? first_lanes(real - n) : 0;
      __m512 x = _mm512_mul_ps(_mm512_loadu_ps(logits + n), to_log2);
      if (block_bias)
        x = _mm512_fmadd_ps(load(block_bias + n, mask), _mm512_set1_ps(LOG2_E), x);
      x = _mm512_mask_mov_ps(lowest, mask, x);
      _mm512_storeu_ps(logits + n, x);
      largest = _mm512_max_ps(largest, x);
    }
    const float before = maximum;
    maximum = std::max(before, _mm512_reduce_max_ps(largest));
    // With every key so far at -inf any finite reference gives the weight 0.
    const float reference = std::isinf(maximum) && maximum < 0 ? 0.f : maximum;
    const __m512 shift = _mm512_set1_ps(reference);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t n = 0; n < count; n += LANES) {
      const __m512 weight = exp2(_mm512_sub_ps(_mm512_loadu_ps(logits + n), shift));
      sum = _mm512_add_ps(sum, weight);
      store(weights + n, weight, 0xFFFF);
    }
    const float factor = std::exp2(before - reference);
    total = total * factor + _mm512_reduce_add_ps(sum);
    return factor;
  }
};

}  // namespace
