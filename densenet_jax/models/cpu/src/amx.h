// Products in the registers that AMX has for matrices: 16 rows of 16 words.
//
// An instruction adds to 16x16 sums the products of 16 rows of 16 words with 16 rows of 16 columns: 8,192
// multiplications of bfloat16, where a vector instruction has 32.  Its operands lie in memory as those of
// the vectors do, except where products are summed over pixels: there one of them is transposed.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include "packing.h"

namespace densenet {

// Linux saves these registers only for a process that has asked for it (x86's arch_prctl).
inline bool ask_for_amx() {
  constexpr int kAsk = 0x1023, kRegisters = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAsk, kRegisters) == 0;
}
inline const bool has_amx = ask_for_amx();

// The sizes of registers 0 to 4: two with sums, M rows, two vectors of columns.
template <int M>
struct alignas(64) AmxSizes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64};
  uint8_t rows[16] = {M, M, M, 16, 16};
};

// M rows of N vectors of sums in registers, which are this object's as long as it lives.
template <int M, int N>
class AmxSums {
 public:
  AmxSums() {
    _tile_loadconfig(&kSizes);
    _tile_zero(0);
    _tile_zero(1);
  }
  ~AmxSums() { _tile_release(); }
  AmxSums(const AmxSums&) = delete;

  // Rows of sums, of rows of words and of columns are `stride` bytes apart.
  void load(const void* sums, int64_t stride) {
    written();
    _tile_loadd(0, sums, stride);
    if constexpr (N == 2) _tile_loadd(1, second(sums), stride);
  }
  void store(void* sums, int64_t stride) const {
    _tile_stored(0, sums, stride);
    if constexpr (N == 2) _tile_stored(1, static_cast<char*>(sums) + 64, stride);
  }
  void add(const void* rows, int64_t row_stride, const void* columns, int64_t column_stride) {
    written();
    _tile_loadd(2, rows, row_stride);
    _tile_loadd(3, columns, column_stride);
    _tile_dpbf16ps(0, 2, 3);
    if constexpr (N == 2) {
      _tile_loadd(4, second(columns), column_stride);
      _tile_dpbf16ps(1, 2, 4);
    }
  }

 private:
  static constexpr AmxSizes<M> kSizes{};

  // gcc does not know that these instructions read memory: what they read must have been written.
  static void written() { asm volatile("" ::: "memory"); }
  static const void* second(const void* p) { return static_cast<const char*>(p) + 64; }
};

// Copies `count` rows of N vectors, followed by zeros to 16 rows.
template <int N>
inline void copy_rows(const Element* rows, int64_t stride, int64_t count, Vec (&out)[16][N]) {
  for (int64_t k = 0; k < 16; ++k)
    for (int n = 0; n < N; ++n)
      out[k][n] = k < count ? words(rows + k * stride + n * kLanes * kPair) : Vec{};
}

inline Vec select(Vec a, Words lanes, Vec b) {
  return Vec(_mm512_permutex2var_ps(__m512(a), __m512i(lanes), __m512(b)));
}

inline void transpose(Vec (&v)[16]) {
  const auto lane = Words(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
#pragma GCC unroll 4
  for (uint32_t step = 1; step < 16; step *= 2) {
    // Lanes of the first row, and after them of the second: each keeps half of its own.
    Words upper = (lane & step) != 0 ? lane - step + 16 : lane;
    Words lower = (lane & step) != 0 ? lane + 16 : lane + step;
#pragma GCC unroll 16
    for (uint32_t i = 0; i < 16; ++i) {
      if (i & step) continue;
      Vec a = v[i], b = v[i + step];
      v[i] = select(a, upper, b), v[i + step] = select(a, lower, b);
    }
  }
}

// See `product` in tiles.h.
template <int M, int N>
inline Tile<M, N> amx_product(const Operand& a, int64_t first, const Element* b) {
  constexpr int64_t kRow = kChunk * sizeof(Element), kPanelRow = kWide * kPair * sizeof(Element);
  AmxSums<M, N> sums;
  for (int i = 0; i < a.lines; ++i) {
    const Element* chunk = a.line[i] + first * kChunk;
    for (int64_t c = a.channels; c > 0; c -= kChunk, chunk += a.chunk_stride) {
      const Element* x = chunk;
      int64_t k = ceil_div(std::min<int64_t>(c, kChunk), kPair);
      for (; k >= 16; k -= 16, x += 16 * kPair, b += 16 * kPair * kWide)
        sums.add(x, kRow, b, kPanelRow);
      if (k == 0) continue;
      Vec rows[M], columns[16][N];
      for (int m = 0; m < M; ++m)
        rows[m] = load(reinterpret_cast<const float*>(x + m * kChunk), k);
      copy_rows(b, kPair * kWide, k, columns);
      sums.add(rows, sizeof(Vec), columns, N * sizeof(Vec));
      b += k * kPair * kWide;
    }
  }
  Tile<M, N> tile;
  sums.store(tile.v, N * sizeof(Vec));
  return tile;
}

// See `outer_product` in tiles.h.
template <int M, int N>
inline void amx_outer_product(const Element* x, int64_t x_line, const Element* y, int64_t y_line,
                              int64_t lines, int64_t pixels, float* out, int64_t stride) {
  constexpr int64_t kPixels = kPair * kChunk;  // elements from a word of two pixels to the next
  AmxSums<M, N> sums;
  sums.load(out, stride * sizeof(float));
  for (int64_t line = 0; line < lines; ++line, x += x_line, y += y_line) {
    const Element *a = x, *b = y;
    for (int64_t k = ceil_div(pixels, kPair); k > 0; k -= 16, a += 16 * kPixels, b += 16 * kPixels) {
      Vec rows[16], columns[16][N];
      for (int64_t i = 0; i < 16; ++i)
        rows[i] = i < k ? load(reinterpret_cast<const float*>(a + i * kPixels), M) : Vec{};
      transpose(rows);
      if (k < 16) copy_rows(b, kPixels, k, columns);
      sums.add(rows, sizeof(Vec), k < 16 ? columns[0] : static_cast<const void*>(b),
               k < 16 ? N * sizeof(Vec) : kPixels * sizeof(Element));
    }
  }
  sums.store(out, stride * sizeof(float));
}

}  // namespace densenet
