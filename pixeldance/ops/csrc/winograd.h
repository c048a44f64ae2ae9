// Convolutions of 3 x 3 cells with fewer products than cells times weights.
//
// Cells and weights are transformed, multiplied point by point and transformed back, over height
// and width; frames of a convolution over time are added up inside the products.

#pragma once

#include <algorithm>

#include "products.h"

namespace {

// F(2, 3) along one axis (Lavin and Gray, arXiv 1509.09308, section 4.1): 4 products for 2 results
// instead of 6.
struct Plain {
  static constexpr int POINTS = 4, EXTENT = 4, STEP = 2;  // a tile: cells it sees, to the next one
  static void transform_cells(const __m512* x, __m512* v) {
    v[0] = _mm512_sub_ps(x[0], x[2]);
    v[1] = _mm512_add_ps(x[1], x[2]);
    v[2] = _mm512_sub_ps(x[2], x[1]);
    v[3] = _mm512_sub_ps(x[1], x[3]);
  }
  static void transform_weights(const __m512* g, __m512* u) {
    const __m512 half = _mm512_set1_ps(0.5f), outer = _mm512_add_ps(g[0], g[2]);
    u[0] = g[0];
    u[1] = _mm512_mul_ps(half, _mm512_add_ps(outer, g[1]));
    u[2] = _mm512_mul_ps(half, _mm512_sub_ps(outer, g[1]));
    u[3] = g[2];
  }
  static void transform_back(const __m512* m, __m512* y) {
    y[0] = _mm512_add_ps(_mm512_add_ps(m[0], m[1]), m[2]);
    y[1] = _mm512_sub_ps(_mm512_sub_ps(m[1], m[2]), m[3]);
  }
};

// The same on cells that are doubled first: with x(2i) = x(2i + 1) three products are enough.
struct Doubled {
  static constexpr int POINTS = 3, EXTENT = 3, STEP = 1;
  static void transform_cells(const __m512* x, __m512* v) {
    v[0] = _mm512_sub_ps(x[0], x[1]);
    v[1] = x[1];
    v[2] = _mm512_sub_ps(x[2], x[1]);
  }
  static void transform_weights(const __m512* g, __m512* u) {
    u[0] = g[0];
    u[1] = _mm512_add_ps(_mm512_add_ps(g[0], g[1]), g[2]);
    u[2] = g[2];
  }
  static void transform_back(const __m512* m, __m512* y) {
    y[0] = _mm512_add_ps(m[0], m[1]);
    y[1] = _mm512_add_ps(m[1], m[2]);
  }
};

constexpr int64_t RESULTS = 2;  // of a tile along an axis

// Vectors of a panel: columns of weights that are multiplied together.
constexpr int64_t PANEL = 4;

inline int64_t panel_vectors(int64_t columns) {
  const int64_t vectors = columns / LANES;
  return vectors >= PANEL ? PANEL : vectors >= 2 ? 2 : 1;
}

// Weights as the products read them: `point panel frame word column`.
template <class T, class Axis>
class Weights {
 public:
  int64_t in_channels, out_channels, frames;

  int64_t cell_words() const { return (in_channels + PER_WORD<T> - 1) / PER_WORD<T>; }
  int64_t columns() const { return round_up(out_channels, LANES); }
  int64_t point_words() const { return frames * cell_words() * columns(); }
  int64_t words() const { return Axis::POINTS * Axis::POINTS * point_words(); }

  // `from` is `out_channel frame 3 3 in_channel`.
  void pack(const T* from, uint32_t* packed) const {
    std::fill(packed, packed + words(), 0u);
    for (int64_t j = 0; j < columns();) {
      const int64_t width = panel_vectors(columns() - j) * LANES;
      for (int64_t o = j; o < std::min(j + width, out_channels); ++o)
        for (int64_t f = 0; f < frames; ++f)
          for (int64_t i = 0; i < in_channels; i += LANES) {
            const int64_t word = f * cell_words() + i / PER_WORD<T>;
            pack_channels(from + (o * frames + f) * 9 * in_channels + i, in_channels - i,
                          packed + j * frames * cell_words() + word * width + (o - j), width);
          }
      j += width;
    }
  }

 private:
  void pack_channels(const T* from, int64_t count, uint32_t* to, int64_t width) const {
    constexpr int P = Axis::POINTS;
    const __mmask16 mask = first_lanes(count);
    __m512 rows[P][3], points[P];
    for (int x = 0; x < 3; ++x) {
      __m512 column[3];
      for (int y = 0; y < 3; ++y) column[y] = load(from + (y * 3 + x) * in_channels, mask);
      Axis::transform_weights(column, points);
      for (int p = 0; p < P; ++p) rows[p][x] = points[p];
    }
    const int64_t num_words = std::min<int64_t>((count + PER_WORD<T> - 1) / PER_WORD<T>,
                                                LANES / PER_WORD<T>);
    for (int p = 0; p < P; ++p) {
      Axis::transform_weights(rows[p], points);
      for (int q = 0; q < P; ++q) {
        alignas(64) uint32_t rounded[LANES / PER_WORD<T>];
        store(reinterpret_cast<T*>(rounded), points[q], 0xFFFF);
        uint32_t* place = to + (p * P + q) * point_words();
        for (int64_t w = 0; w < num_words; ++w) place[w * width] = rounded[w];
      }
    }
  }
};

// Cells are `batch frames height width channels`, contiguous; zeros surround every frame.
template <class T, class Axis>
class Convolution {
 public:
  Weights<T, Axis> weights;
  const uint32_t* packed;
  const float* bias;
  const T* cells;    // `taps - 1` frames more than the result
  const T* residual; // added to the result, or null
  T* out;
  int64_t batch, frames, height, width, taps;  // frames of the result, size of the cells
  uint32_t* scratch;                           // of scratch_words() for each thread

  int64_t scratch_words() const {
    return POINTS * (cells_plane(max_tiles(), max_frames()) + sums_plane(max_tiles(), max_frames()));
  }

  void run(int threads) const {
    const int64_t frame_blocks = (frames + max_frames() - 1) / max_frames();
    const int64_t tile_blocks = (tiles_across() + max_tiles() - 1) / max_tiles();
    const int64_t blocks = batch * frame_blocks * tiles_down() * tile_blocks;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t x = i % tile_blocks * max_tiles(), y = i / tile_blocks % tiles_down();
      const int64_t f = i / tile_blocks / tiles_down() % frame_blocks * max_frames();
      compute({i / tile_blocks / tiles_down() / frame_blocks, f, y, x,
               std::min(max_frames(), frames - f), std::min(max_tiles(), tiles_across() - x)},
              scratch + omp_get_thread_num() * scratch_words());
    }
  }

 private:
  static constexpr int P = Axis::POINTS, POINTS = P * P;
  static constexpr int64_t MAX_FRAMES = 4, TILES = 12, BLOCK_WORDS = 96 * 1024;

  struct Block {
    int64_t batch, frame, y, x, frames, tiles;  // tiles of row y, from x
  };

  int64_t tiles_down() const { return (height + Axis::STEP - 1) / Axis::STEP; }
  int64_t tiles_across() const { return (width + Axis::STEP - 1) / Axis::STEP; }
  int64_t out_height() const { return height * RESULTS / Axis::STEP; }
  int64_t out_width() const { return width * RESULTS / Axis::STEP; }
  int64_t max_frames() const {
    const int64_t blocks = (frames + MAX_FRAMES - 1) / MAX_FRAMES;
    return (frames + blocks - 1) / blocks;
  }
  int64_t max_tiles() const {
    const int64_t words = POINTS * ((max_frames() + taps - 1) * weights.cell_words() +
                                    max_frames() * weights.columns());
    const int64_t tiles = std::max<int64_t>(BLOCK_WORDS / words / 12, 1) * 12;
    return std::min(tiles, tiles_across());
  }
  // Words of one point. Planes are an odd number of cache lines, so that they share no cache set.
  int64_t cells_plane(int64_t tiles, int64_t count) const {
    return round_up(tiles * (count + taps - 1) * weights.cell_words(), 2 * LANES) + LANES;
  }
  int64_t sums_plane(int64_t tiles, int64_t count) const {
    return round_up(tiles * count * weights.columns(), 2 * LANES) + LANES;
  }

  void compute(const Block& block, uint32_t* memory) const {
    const int64_t in_frames = block.frames + taps - 1, words = weights.cell_words();
    const int64_t in_plane = cells_plane(block.tiles, block.frames);
    const int64_t out_plane = sums_plane(block.tiles, block.frames), columns = weights.columns();
    float* sums = reinterpret_cast<float*>(memory + POINTS * in_plane);
    for (int64_t f = 0; f < in_frames; ++f)
      transform_cells(block, f, reinterpret_cast<T*>(memory + f * words), in_plane * PER_WORD<T>,
                      in_frames * words * PER_WORD<T>);
    for (int64_t p = 0; p < POINTS; ++p)
      for (int64_t n = 0; n < block.tiles; n += TILES)  // few tiles: their frames stay in cache
        for (int64_t f = 0; f < block.frames; ++f)
          multiply_panels(std::min(TILES, block.tiles - n),
                          memory + p * in_plane + (n * in_frames + f) * words, in_frames * words,
                          packed + p * weights.point_words(),
                          sums + p * out_plane + (f * block.tiles + n) * columns);
    for (int64_t f = 0; f < block.frames; ++f)
      transform_back(block, f, sums + f * block.tiles * columns, out_plane);
  }

  void transform_cells(const Block& block, int64_t frame, T* to, int64_t plane,
                       int64_t tile_stride) const {
    const int64_t channels = weights.in_channels, padded = weights.cell_words() * PER_WORD<T>;
    const int64_t in_frames = frames + taps - 1;
    const T* from = cells + (block.batch * in_frames + block.frame + frame) * height * width * channels;
    for (int64_t c = 0; c < padded; c += LANES) {
      const __mmask16 in = first_lanes(channels - c), stored = first_lanes(padded - c);
      __m512 columns[Axis::EXTENT][P];
      for (int i = 0; i < Axis::EXTENT - Axis::STEP; ++i)
        transform_column(from + c, block.y, block.x * Axis::STEP + i - 1, in, columns[i]);
      for (int64_t n = 0; n < block.tiles; ++n) {
#pragma GCC unroll 4
        for (int i = Axis::EXTENT - Axis::STEP; i < Axis::EXTENT; ++i)
          transform_column(from + c, block.y, (block.x + n) * Axis::STEP + i - 1, in, columns[i]);
        T* place = to + n * tile_stride + c;
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          __m512 row[Axis::EXTENT], points[P];
#pragma GCC unroll 4
          for (int i = 0; i < Axis::EXTENT; ++i) row[i] = columns[i][p];
          Axis::transform_cells(row, points);
#pragma GCC unroll 4
          for (int q = 0; q < P; ++q) store(place + (p * P + q) * plane, points[q], stored);
        }
#pragma GCC unroll 4
        for (int i = 0; i < Axis::EXTENT - Axis::STEP; ++i)
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) columns[i][p] = columns[i + Axis::STEP][p];
      }
    }
  }

  // Column `x` of the tiles of row `tile_y`.
  void transform_column(const T* from, int64_t tile_y, int64_t x, __mmask16 mask,
                        __m512* points) const {
    __m512 rows[Axis::EXTENT];
#pragma GCC unroll 4
    for (int i = 0; i < Axis::EXTENT; ++i) {
      const int64_t y = tile_y * Axis::STEP + i - 1;
      const bool is_inside = y >= 0 && y < height && x >= 0 && x < width;
      const int64_t at = is_inside ? (y * width + x) * weights.in_channels : 0;
      rows[i] = load(from + at, is_inside ? mask : static_cast<__mmask16>(0));
    }
    Axis::transform_cells(rows, points);
  }

  void multiply_panels(int64_t rows, const uint32_t* a, int64_t a_stride, const uint32_t* b,
                       float* c) const {
    const int64_t columns = weights.columns(), words = weights.cell_words();
    for (int64_t j = 0; j < columns;) {
      const int64_t vectors = panel_vectors(columns - j), width = vectors * LANES;
      // Of a longer past than there is, the first frames are zeros.
      const uint32_t* panel = b + j * weights.frames * words + (weights.frames - taps) * words * width;
      if (vectors == 4)
        multiply_columns<T, 4>(rows, a, a_stride, panel, width, taps * words, c + j, columns, false);
      else if (vectors == 2)
        multiply_columns<T, 2>(rows, a, a_stride, panel, width, taps * words, c + j, columns, false);
      else
        multiply_columns<T, 1>(rows, a, a_stride, panel, width, taps * words, c + j, columns, false);
      j += width;
    }
  }

  void transform_back(const Block& block, int64_t frame, const float* sums, int64_t plane) const {
    const int64_t channels = weights.out_channels;
    const int64_t first = (block.batch * frames + block.frame + frame) * out_height() * out_width();
    for (int64_t n = 0; n < block.tiles; ++n) {
      const int64_t y = block.y * RESULTS, x = (block.x + n) * RESULTS;
      for (int64_t c = 0; c < channels; c += LANES) {
        const __mmask16 mask = first_lanes(channels - c);
        const float* from = sums + n * weights.columns() + c;
        __m512 half[RESULTS][P], result[RESULTS];
#pragma GCC unroll 4
        for (int q = 0; q < P; ++q) {
          __m512 points[P];
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) points[p] = _mm512_loadu_ps(from + (p * P + q) * plane);
          Axis::transform_back(points, result);
          half[0][q] = result[0], half[1][q] = result[1];
        }
        const __m512 offset = bias ? load(bias + c, mask) : _mm512_setzero_ps();
#pragma GCC unroll 2
        for (int i = 0; i < RESULTS; ++i) {
          Axis::transform_back(half[i], result);
#pragma GCC unroll 2
          for (int j = 0; j < RESULTS; ++j) {
            if (y + i >= out_height() || x + j >= out_width()) continue;
            const int64_t at = (first + (y + i) * out_width() + x + j) * channels + c;
            __m512 sum = _mm512_add_ps(result[j], offset);
            if (residual) sum = _mm512_add_ps(sum, load(residual + at, mask));
            store(out + at, sum, mask);
          }
        }
      }
    }
  }
};

template <class T, class Axis>
int64_t pack_weight(const T* weight, const int64_t* sizes, uint32_t* packed) {
  const Weights<T, Axis> weights{sizes[0], sizes[1], sizes[2]};
  if (packed) weights.pack(weight, packed);
  return weights.words();
}

template <class T, class Axis>
int64_t convolve(const uint32_t* packed, const float* bias, const T* cells, const T* residual,
                 T* out, uint32_t* scratch, const int64_t* sizes, int threads) {
  const Convolution<T, Axis> run{{sizes[0], sizes[1], sizes[2]},
                                 packed,   bias,     cells,    residual, out,
                                 sizes[3], sizes[4], sizes[5], sizes[6], sizes[7],
                                 scratch};
  if (scratch) run.run(threads);
  return run.scratch_words();
}

}  // namespace
