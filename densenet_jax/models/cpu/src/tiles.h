// Matrix products by tiles: sums of a few pixels and two vectors of columns, which stay in registers.

#pragma once

#include <utility>

#include "packing.h"
#if defined(AMX)
#include "amx.h"
#endif

namespace densenet {

constexpr int kBlock = 8 * kRows;  // pixels at a time where a kernel's gradient is summed

// Stores the columns that there are, `width`, of pixels `stride` apart.
template <int M, int N>
inline void store_tile(const Tile<M, N>& tile, float* out, int64_t stride, int64_t width) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n)
      store(out + m * stride + n * kLanes, tile.v[m][n], width - n * kLanes);
}

// Products of M pixels from pixel `first` on with N vectors of columns.  A function of its own: gcc
// keeps a sum in memory where it has to find registers for the caller, too.
template <int M, int N>
__attribute__((noinline)) Tile<M, N> product(const Operand& a, int64_t first, const Element* b) {
#if defined(AMX)
  if (has_amx) return amx_product<M, N>(a, first, b);
#endif
  Vec sum[M][N] = {};
  for (int i = 0; i < a.lines; ++i) {
    const Element* chunk = a.line[i] + first * kChunk;
    for (int64_t c = a.channels; c > 0; c -= kChunk, chunk += a.chunk_stride) {
      const Element* x = chunk;
      int64_t k = ceil_div(std::min<int64_t>(c, kChunk), kPair);
      for (; k > 0; --k, x += kPair, b += kPair * kWide) {
        Vec w[N];
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) w[n] = keep(words(b + n * kLanes * kPair));
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          Vec u = broadcast(x + m * kChunk);
#pragma GCC unroll 2
          for (int n = 0; n < N; ++n) add_product(sum[m][n], u, w[n]);
        }
      }
    }
  }
  Tile<M, N> tile;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) tile.v[m][n] = sum[m][n];
  return tile;
}

// Adds to M rows of a kernel's gradient, `stride` apart, the products of channels x[p * kChunk + ...]
// and N vectors of columns y[p * kChunk + ...], summed over `lines` lines of `pixels` pixels each.
// Words hold two pixels.
template <int M, int N>
inline void outer_product(const Element* x, int64_t x_line, const Element* y, int64_t y_line,
                          int64_t lines, int64_t pixels, float* out, int64_t stride) {
#if defined(AMX)
  if (has_amx) return amx_outer_product<M, N>(x, x_line, y, y_line, lines, pixels, out, stride);
#endif
  Vec sum[M][N] = {};
  for (int64_t line = 0; line < lines; ++line, x += x_line, y += y_line) {
    const Element *a = x, *b = y;
    for (int64_t p = 0; p < pixels; p += kPair, a += kPair * kChunk, b += kPair * kChunk) {
      Vec w[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) w[n] = words(b + n * kLanes * kPair);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        Vec u = broadcast(a + m * kPair);
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) add_product(sum[m][n], u, w[n]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      float* p = out + m * stride + n * kLanes;
      store(p, load(p) + sum[m][n]);
    }
}

// Adds partial sums that lie `size` apart, always in the same order, so results repeat to the bit.
inline void add_parts(Pool& pool, const float* partial, int64_t parts, int64_t size,
                      int64_t rows, int64_t stride, float* out, int64_t columns) {
  int64_t step = std::max<int64_t>(1, 16384 / stride);
  parallel(pool, ceil_div(rows, step), [&](int64_t k) {
    for (int64_t r = k * step; r < std::min(rows, (k + 1) * step); ++r)
      for (int64_t i = 0; i < columns; ++i) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + r * stride + i];
        out[r * columns + i] = static_cast<float>(sum);
      }
  });
}

// Calls f.template operator()<M, N>() for run-time m and for one or two vectors of columns.
template <int M = kRows, class F>
inline void dispatch(int64_t m, int64_t columns, F&& f) {
  if constexpr (M > 1) {
    if (m < M) return dispatch<M - 1>(m, columns, f);
  }
  if (columns > kLanes) {
    f.template operator()<M, 2>();
  } else {
    f.template operator()<M, 1>();
  }
}

// Divides `pixels` into tiles of nearly equal size, at most kRows, and calls f(first, count).
template <class F>
inline void tiles(int64_t pixels, F&& f) {
  int64_t count = ceil_div(pixels, kRows);
  for (int64_t i = 0; i < count; ++i) {
    int64_t first = i * pixels / count;
    f(first, (i + 1) * pixels / count - first);
  }
}

// Multiplies `pixels` pixels and all panels of a matrix: give(tile, its first pixel, its first column).
template <class F>
inline void multiply(const Operand& a, int64_t pixels, const Element* panels, int64_t columns,
                     F&& give) {
  for (int64_t j = 0; j < columns; j += kWide)
    tiles(pixels, [&](int64_t first, int64_t count) {
      dispatch(count, columns - j, [&]<int M, int N>() {
        give(product<M, N>(a, first, panels + j * a.depth()), first, j);
      });
    });
}

}  // namespace densenet
