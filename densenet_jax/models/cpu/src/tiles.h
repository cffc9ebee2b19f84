// Register tiles of matrix products, and packed operands.
//
// A map's channels are packed in chunks of kChunk: [chunk][pixel][kChunk].  So neighbouring pixels
// are a constant apart, whatever the number of channels, and the addresses of a tile's rows are
// one register and constants.  Weights are packed in panels of kWide columns: [panel][k][kWide].
//
// The operands of products are floats, or with -DBFLOAT16 two values of bfloat16 in a word.  These are
// neighbours in the sum: two channels of a pixel, [chunk][pixel][kChunk / 2][2]; two rows of a panel,
// [panel][k / 2][kWide][2]; or, where products are summed over pixels, two pixels,
// [chunk][pixel / 2][kChunk][2].  Sums, and everything else, are floats.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "memory.h"
#include "threads.h"

namespace densenet {

#if defined(__AVX512F__)  // 32 registers of 16: 28 sums, 2 weights, 1 input
constexpr int kLanes = 16, kRows = 14;
#elif defined(__AVX__)      // 16 registers of 8: 12 sums
constexpr int kLanes = 8, kRows = 6;
#elif defined(__aarch64__)  // 32 registers of 4
constexpr int kLanes = 4, kRows = 12;
#else
constexpr int kLanes = 4, kRows = 4;
#endif
constexpr int kWide = 2 * kLanes;
constexpr int kChunk = 64;
constexpr int kBlock = 8 * kRows;  // pixels at a time where a kernel's gradient is summed

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef Vec AnyVec __attribute__((aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const AnyVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<AnyVec*>(p) = v; }
// Loads and stores of at most kLanes values; what lies behind them is 0, and stays as it is.
#if defined(__AVX512F__)
inline __mmask16 first(int64_t count) { return (1u << std::max<int64_t>(count, 0)) - 1; }
inline Vec load(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : Vec(_mm512_maskz_loadu_ps(first(count), p));
}
inline void store(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  _mm512_mask_storeu_ps(p, first(count), __m512(v));
}
#elif defined(__AVX__)
inline __m256i first(int64_t count) {
  static const int32_t kMask[] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  const int32_t* from = kMask + kLanes - std::max<int64_t>(count, 0);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline Vec load(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : Vec(_mm256_maskload_ps(p, first(count)));
}
inline void store(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  _mm256_maskstore_ps(p, first(count), __m256(v));
}
#else
inline Vec load(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float rest[kLanes] = {};
  std::memcpy(rest, p, std::max<int64_t>(count, 0) * 4);
  return load(rest);
}
inline void store(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  float rest[kLanes];
  store(rest, v);
  std::memcpy(p, rest, std::max<int64_t>(count, 0) * 4);
}
#endif

// Keeps a value in a register, where the compiler would load it again for each use.
inline Vec keep(Vec v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

#if defined(BFLOAT16)
struct Element {
  uint16_t bits;
};
constexpr int kPair = 2;  // elements in a word

typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef Halves AnyHalves __attribute__((aligned(2), may_alias));

// Whether the processor multiplies pairs; otherwise other instructions do the same, for tests.
#if defined(__AVX512BF16__)
constexpr bool kMultipliesBfloat16 = true;
inline Halves rounded(Vec v) { return Halves(_mm512_cvtneps_pbh(__m512(v))); }
inline Words widened(Halves v) { return Words(_mm512_cvtepu16_epi32(__m256i(v))); }
// Two values of each lane, rounded, in a word.
inline Vec paired(Vec first, Vec second) {
  const auto each = Words(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  __m512i both = __m512i(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)));
  return Vec(_mm512_permutexvar_epi16(__m512i(each | (each + 16) << 16), both));
}
inline void add_product(Vec& sum, Vec a, Vec b) {
  sum = Vec(_mm512_dpbf16_ps(__m512(sum), __m512bh(a), __m512bh(b)));
}
#else
constexpr bool kMultipliesBfloat16 = false;
inline Halves rounded(Vec v) {
  Words bits = Words(v), nearest = bits + 0x7fff + (bits >> 16 & 1);
  return __builtin_convertvector((v == v ? nearest : bits | 0x400000) >> 16, Halves);
}
inline Words widened(Halves v) { return __builtin_convertvector(v, Words); }
// Two values of each lane, rounded, in a word.
inline Vec paired(Vec first, Vec second) {
  return Vec(widened(rounded(first)) | widened(rounded(second)) << 16);
}
inline void add_product(Vec& sum, Vec a, Vec b) {
  sum += Vec(Words(a) & 0xffff0000) * Vec(Words(b) & 0xffff0000);
  sum += Vec(Words(a) << 16) * Vec(Words(b) << 16);
}
#endif

// Stores values as neighbours.
inline void store(Element* p, Vec v) { *reinterpret_cast<AnyHalves*>(p) = rounded(v); }
// Stores values as halves of words: as the first, beside zeros, for an even i, else as the second.
inline void put(Element* p, int64_t i, Vec v) {
  Words half = widened(rounded(v));
  float* words = reinterpret_cast<float*>(p);
  store(words, Vec(i % 2 ? Words(load(words)) | half << 16 : half));
}
inline Vec words(const Element* p) { return load(reinterpret_cast<const float*>(p)); }
inline Vec broadcast(const Element* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return Vec(word - Words{});
}
#else
typedef float Element;
constexpr int kPair = 1;
constexpr bool kMultipliesBfloat16 = false;

inline void add_product(Vec& sum, Vec a, Vec b) { sum += a * b; }
inline void put(Element* p, int64_t, Vec v) { store(p, v); }
inline Vec words(const Element* p) { return load(p); }
inline Vec broadcast(const Element* p) { return *p - Vec{}; }
#endif

// NaN stays NaN, so that a broken network is noticed.
#if defined(__AVX512F__)
inline Vec relu(Vec v) { return Vec(_mm512_max_ps(__m512(Vec{}), __m512(v))); }
#elif defined(__AVX__)
inline Vec relu(Vec v) { return Vec(_mm256_max_ps(__m256(Vec{}), __m256(v))); }
#else
inline Vec relu(Vec v) { return v < 0 ? Vec{} : v; }
#endif

// A vector of channels, followed by zeros to a whole number of chunks.
inline const float* padded(int slot, const float* v, int64_t count) {
  int64_t whole = round_up(count, kChunk);
  float* out = scratch(slot, whole);
  std::memcpy(out, v, count * 4);
  std::fill(out + count, out + whole, 0.0f);
  return out;
}

// Stores a vector of channels of each of n neighbouring pixels, from pixel p on; `out` is where pixel
// 0 has them.  Words hold two channels; or two pixels, and p is even if n is 2.
template <size_t n>
inline void store_channels(Element* out, int64_t p, const Vec (&v)[n]) {
  for (size_t i = 0; i < n; ++i) store(out + (p + i) * kChunk, v[i]);
}
template <size_t n>
inline void store_pixels(Element* out, int64_t p, const Vec (&v)[n]) {
  Element* words = out + p / kPair * kPair * kChunk;
  if constexpr (n == 2)
    store(reinterpret_cast<float*>(words), paired(v[0], v[1]));
  else
    put(words, p, v[0]);
}

// What the words of packed channels hold: two channels, two pixels, or one in each of two arrays.
enum Packing { kChannels = 1, kPixels = 2, kBoth = kChannels | kPixels };

// Packs `pixels` pixels of `channels` (at most kChunk) channels: value(vector, its pixel and channel).
// Where words hold channels, zeros follow the last one.  With kBoth, words of pixels go to `paired`;
// in float32 all are the same, and go to `out`.
template <Packing kPacking, class F>
inline void pack_chunk(Element* out, const float* x, int64_t pixels, int64_t stride,
                       int64_t channels, F&& value, Element* paired = nullptr) {
  constexpr bool kPairs = kPair > 1 && (kPacking & kPixels), kSingle = !kPairs || kPacking == kBoth;
  constexpr int kStep = kPairs ? kPair : 1;
  if (kPacking == kPixels) paired = out;
  auto pack = [&](int64_t p, int64_t c, auto count) {
    Vec v[kStep];
    for (int i = 0; i < kStep; ++i)
      v[i] = p + i < pixels ? value(load(x + i * stride + c, count), p + i, c) : Vec{};
    if constexpr (kSingle) store_channels(out + c, p, v);
    if constexpr (kPairs) store_pixels(paired + c * kPair, p, v);
  };
  int64_t whole = channels / kLanes * kLanes;
  for (int64_t p = 0; p < pixels; p += kStep, x += kStep * stride) {
    for (int64_t c = 0; c < whole; c += kLanes) pack(p, c, std::integral_constant<int, kLanes>());
    if (whole == channels) continue;
    pack(p, whole, channels - whole);
    if constexpr (kSingle)
      for (int i = 0; i < kStep; ++i) {
        Element* row = out + (p + i) * kChunk;
        std::fill(row + channels, row + round_up(channels, 16), Element{});  // all that tiles read
      }
  }
}

constexpr int kMostLines = 7;

// Where the rows of a matrix product lie in memory. The sum runs over `lines` lines, and in each
// over all chunks of `channels` channels.
struct Operand {
  const Element* line[kMostLines];
  int lines;
  int64_t channels, chunk_stride;

  int64_t depth() const { return lines * round_up(channels, kPair); }
};

// Stores row c of a panel.
inline void put_row(Element* panel, int64_t c, const float* row) {
  for (int k = 0; k < kWide; k += kLanes)
    put(panel + c / kPair * kPair * kWide + k * kPair, c, load(row + k));
}

// Packs the weights of a product in panels; weight(i, c, column) is that of line i.
template <class F>
void pack_panels(Pool& pool, Element* panels, const Operand& a, int64_t columns, F&& weight) {
  parallel(pool, ceil_div(columns, kWide), [&](int64_t panel) {
    Element* out = panels + panel * a.depth() * kWide;
    int64_t first = panel * kWide, width = std::min<int64_t>(kWide, columns - first);
    float row[kWide] = {};
    for (int i = 0; i < a.lines; ++i, out += round_up(a.channels, kPair) * kWide)
      for (int64_t c = 0; c < a.channels; ++c) {
        for (int64_t k = 0; k < width; ++k) row[k] = weight(i, c, first + k);
        put_row(out, c, row);
      }
  });
}

template <int M, int N>
struct Tile {
  Vec v[M][N];
};

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
