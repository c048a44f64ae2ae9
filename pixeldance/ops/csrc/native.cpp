// The fused operations for processors with AVX-512; what each computes is said in functions.py.
//
// Plain C functions without PyTorch's headers: the library builds in seconds. Every function takes
// sizes and strides in elements, checks nothing (native.py does) and allocates nothing. Arithmetic
// is float32; bfloat16 is read and written only. NaN and infinities behave as in IEEE arithmetic.

#include <omp.h>

#include <cmath>

#include "attention.h"
#include "vectors.h"
#include "winograd.h"

namespace {

// ---- token operations: `batch tokens width`, rows of the result contiguous

// A float32 vector for each token, or the same one for several (stride 0).
struct Vectors {
  const float* data;
  int64_t batch_stride, token_stride;
  const float* at(int64_t batch, int64_t token) const {
    return data + batch * batch_stride + token * token_stride;
  }
};

template <class T>
void layer_norm_row(const T* x, const float* weight, const float* bias, float weight_offset, T* out,
                    int64_t width, float eps) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += LANES)
    sum = _mm512_add_ps(sum, load(x + c, first_lanes(width - c)));
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
  __m512 squares = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += LANES) {
    const __mmask16 mask = first_lanes(width - c);
    const __m512 centred = _mm512_maskz_sub_ps(mask, load(x + c, mask), mean);
    squares = _mm512_fmadd_ps(centred, centred, squares);
  }
  const float variance = _mm512_reduce_add_ps(squares) / width;
  const __m512 factor = _mm512_set1_ps(1.f / std::sqrt(variance + eps));
  const __m512 offset = _mm512_set1_ps(weight_offset);
  for (int64_t c = 0; c < width; c += LANES) {
    const __mmask16 mask = first_lanes(width - c);
    const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(load(x + c, mask), mean), factor);
    const __m512 scale = _mm512_add_ps(load(weight + c, mask), offset);
    store(out + c, _mm512_fmadd_ps(normed, scale, load(bias + c, mask)), mask);
  }
}

template <class T>
void layer_norm(const T* x, Vectors weight, Vectors bias, float weight_offset, T* out,
                int64_t batch, int64_t tokens, int64_t width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < batch * tokens; ++i) {
    const int64_t b = i / tokens, n = i % tokens;
    layer_norm_row(x + i * width, weight.at(b, n), bias.at(b, n), weight_offset, out + i * width,
                   width, eps);
  }
}

template <class T>
void gated_residual(const T* x, const T* update, Vectors gate, T* out, int64_t batch,
                    int64_t tokens, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < batch * tokens; ++i) {
    const float* row_gate = gate.at(i / tokens, i % tokens);
    for (int64_t c = 0; c < width; c += LANES) {
      const __mmask16 mask = first_lanes(width - c);
      const int64_t at = i * width + c;
      const __m512 sum =
          _mm512_fmadd_ps(load(update + at, mask), load(row_gate + c, mask), load(x + at, mask));
      store(out + at, sum, mask);
    }
  }
}

// Pairs (even, odd) times cosine and sine: (even cos - odd sin, odd cos + even sin).
inline __m512 rotate(__m512 pairs, __m512 cos_sin) {
  const __m512 swapped = _mm512_permute_ps(pairs, 0xB1);
  const __m512 by_sin = _mm512_mul_ps(swapped, _mm512_movehdup_ps(cos_sin));
  return _mm512_fmaddsub_ps(pairs, _mm512_moveldup_ps(cos_sin), by_sin);
}

// RMS norm over `heads head_dim`, then the rotation of each head unless `cos_sin` is null.
template <class T>
void rms_norm_rotate(const T* x, int64_t token_stride, const float* weight, const float* cos_sin,
                     T* out, int64_t batch, int64_t tokens, int64_t heads, int64_t head_dim,
                     float eps, int threads) {
  const int64_t width = heads * head_dim;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < batch * tokens; ++i) {
    const T* row = x + i * token_stride;
    const float mean_square = sum_of_squares(row, width) / width;
    const __m512 factor = _mm512_set1_ps(1.f / std::sqrt(mean_square + eps));
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t c = 0; c < head_dim; c += LANES) {
        const __mmask16 mask = first_lanes(head_dim - c);
        const int64_t at = h * head_dim + c;
        const __m512 normed = _mm512_mul_ps(load(row + at, mask), factor);
        __m512 y = _mm512_mul_ps(normed, load(weight + at, mask));
        if (cos_sin) y = rotate(y, load(cos_sin + (i % tokens) * head_dim + c, mask));
        store(out + i * width + at, y, mask);
      }
    }
  }
}

template <class T>
void gelu_tanh(const T* x, T* out, int64_t count, int threads) {
  // x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
  const __m512 linear = _mm512_set1_ps(1.59576912f), cubic = _mm512_set1_ps(0.0713548163f);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t c = 0; c < count; c += LANES) {
    const __mmask16 mask = first_lanes(count - c);
    const __m512 v = load(x + c, mask);
    const __m512 u = _mm512_mul_ps(v, _mm512_fmadd_ps(_mm512_mul_ps(v, v), cubic, linear));
    store(out + c, times_sigmoid(v, u), mask);
  }
}

// Rows of `out` come in runs: `run` rows one after another, runs `run_stride` apart.
template <class T>
void rms_norm_silu(const T* x, const float* weight, T* out, int64_t rows, int64_t run,
                   int64_t run_stride, int64_t width, float eps, int threads) {
  const float root = std::sqrt(static_cast<float>(width));
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = x + i * width;
    T* to = out + (i / run) * run_stride + (i % run) * width;
    const float norm = std::sqrt(sum_of_squares(row, width));
    const __m512 factor = _mm512_set1_ps(root / (norm < eps ? eps : norm));
    for (int64_t c = 0; c < width; c += LANES) {
      const __mmask16 mask = first_lanes(width - c);
      const __m512 normed = _mm512_mul_ps(load(row + c, mask), factor);
      const __m512 y = _mm512_mul_ps(normed, load(weight + c, mask));
      store(to + c, times_sigmoid(y, y), mask);
    }
  }
}

}  // namespace

// ---- what native.py calls

#define PIXELDANCE_OPS(T, NAME)                                                                    \
  void layer_norm_##NAME(const T* x, const float* weight, int64_t weight_batch,                    \
                         int64_t weight_token, const float* bias, int64_t bias_batch,              \
                         int64_t bias_token, double weight_offset, T* out, int64_t batch,          \
                         int64_t tokens, int64_t width, double eps, int threads) {                 \
    layer_norm<T>(x, {weight, weight_batch, weight_token}, {bias, bias_batch, bias_token},         \
                  static_cast<float>(weight_offset), out, batch, tokens, width,                    \
                  static_cast<float>(eps), threads);                                               \
  }                                                                                                \
  void gated_residual_##NAME(const T* x, const T* update, const float* gate, int64_t gate_batch,   \
                             int64_t gate_token, T* out, int64_t batch, int64_t tokens,            \
                             int64_t width, int threads) {                                         \
    gated_residual<T>(x, update, {gate, gate_batch, gate_token}, out, batch, tokens, width,        \
                      threads);                                                                    \
  }                                                                                                \
  void rms_norm_rotate_##NAME(const T* x, int64_t token_stride, const float* weight,               \
                              const float* cos_sin, T* out, int64_t batch, int64_t tokens,         \
                              int64_t heads, int64_t head_dim, double eps, int threads) {          \
    rms_norm_rotate<T>(x, token_stride, weight, cos_sin, out, batch, tokens, heads, head_dim,      \
                       static_cast<float>(eps), threads);                                          \
  }                                                                                                \
  void gelu_tanh_##NAME(const T* x, T* out, int64_t count, int threads) {                          \
    gelu_tanh<T>(x, out, count, threads);                                                          \
  }                                                                                                \
  void rms_norm_silu_##NAME(const T* x, const float* weight, T* out, int64_t rows, int64_t run,    \
                            int64_t run_stride, int64_t width, double eps, int threads) {          \
    rms_norm_silu<T>(x, weight, out, rows, run, run_stride, width, static_cast<float>(eps),        \
                     threads);                                                                     \
  }

#define PIXELDANCE_ATTENTION(T, NAME)                                                              \
  /* sizes: batch heads queries keys head_dim; strides: batch token head of q, k, v, out */        \
  int64_t attention_##NAME(const T* q, const T* k, const T* v, T* out, const float* bias,          \
                           uint32_t* packed, const int64_t* sizes, const int64_t* strides,         \
                           double scale, int threads) {                                            \
    const int64_t* s = strides;                                                                    \
    const Attention<T> run{{q, s[0], s[1], s[2]},  {k, s[3], s[4], s[5]},                          \
                           {v, s[6], s[7], s[8]},  {out, s[9], s[10], s[11]},                      \
                           bias,     sizes[0],     sizes[1], sizes[2],                             \
                           sizes[3], sizes[4],     static_cast<float>(scale),                      \
                           packed};                                                                \
    if (packed) run.run(threads);                                                                  \
    return run.packed_words();                                                                     \
  }

#define PIXELDANCE_CONVOLUTION(T, NAME)                                                            \
  /* sizes: in_channels out_channels frames; returns the words of `packed` */                      \
  int64_t pack_weight_##NAME(const T* weight, const int64_t* sizes, int doubled,                   \
                             uint32_t* packed) {                                                   \
    return doubled ? pack_weight<T, Doubled>(weight, sizes, packed)                                \
                   : pack_weight<T, Plain>(weight, sizes, packed);                                 \
  }                                                                                                \
  /* sizes: those, then batch frames height width taps; returns the words of a thread's scratch */ \
  int64_t convolve_frames_##NAME(const uint32_t* packed, const float* bias, const T* cells,        \
                                 const T* residual, T* out, uint32_t* scratch,                     \
                                 const int64_t* sizes, int doubled, int threads) {                 \
    const auto compute = doubled ? convolve<T, Doubled> : convolve<T, Plain>;                      \
    return compute(packed, bias, cells, residual, out, scratch, sizes, threads);                   \
  }

extern "C" {
PIXELDANCE_CONVOLUTION(float, f32)
PIXELDANCE_OPS(float, f32)
PIXELDANCE_OPS(bf16, bf16)
PIXELDANCE_ATTENTION(float, f32)
#ifdef __AVX512BF16__
PIXELDANCE_ATTENTION(bf16, bf16)
PIXELDANCE_CONVOLUTION(bf16, bf16)
#endif
}
