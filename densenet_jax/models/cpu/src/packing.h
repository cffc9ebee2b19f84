// Packed operands of matrix products.
//
// A map's channels are packed in chunks of kChunk: [chunk][pixel][kChunk].  So neighbouring pixels
// are a constant apart, whatever the number of channels, and the addresses of a tile's rows are
// one register and constants.  Weights are packed in panels of kWide columns: [panel][k][kWide].
//
// With -DBFLOAT16 the two values in a word are neighbours in the sum: two channels of a pixel,
// [chunk][pixel][kChunk / 2][2]; two rows of a panel, [panel][k / 2][kWide][2]; or, where products are
// summed over pixels, two pixels, [chunk][pixel / 2][kChunk][2].  Sums, and everything else, are floats.

#pragma once

#include <type_traits>

#include "memory.h"
#include "threads.h"
#include "vectors.h"

namespace densenet {

constexpr int kWide = 2 * kLanes;
constexpr int kChunk = 64;

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

}  // namespace densenet
