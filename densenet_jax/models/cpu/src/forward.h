// BN-ReLU-convolution: the input is normalised while it is packed, and the sums of the output are
// taken while it is stored.

#pragma once

#include "tiles.h"

namespace densenet {

// Slots of scratch memory: of the calling thread, then of each working one.
enum {
  kWeights, kPartial, kGain, kShift, kSlope, kConstant, kInput, kOutput, kLine, kTransformed,
  kProducts, kPaired
};

// A buffer [B, H, W, C].
struct Map {
  Map with(const float* other, int64_t its_channels) const {
    return {const_cast<float*>(other), images, height, width, its_channels};
  }
  float* at(int64_t image, int64_t row, int64_t column) const {
    return data + ((image * height + row) * width + column) * channels;
  }
  int64_t pixels() const { return images * height * width; }

  // Fetches channels of some pixels into the cache, of those that there are.  Called between products,
  // it hides the memory's latency; processors do not foresee reads of a part of each pixel.
  void fetch(int64_t pixel, int64_t count, int64_t channel, int64_t its_channels) const {
    asm volatile("");  // gcc drops calls of a function that does nothing else
    int64_t end = std::min(channel + its_channels, channels) - 1;
    for (int64_t i = pixel; i < std::min(pixel + count, pixels()); ++i) {
      for (int64_t c = channel; c < end; c += 16) __builtin_prefetch(data + i * channels + c, 0, 2);
      __builtin_prefetch(data + i * channels + end, 0, 2);
    }
  }

  float* data;
  int64_t images, height, width, channels;
};

// A kernel [size, size, inputs, outputs].
struct Kernel {
  const float* data;
  int64_t size, inputs, outputs;
};

// A normalisation: x * gain + shift, of as many channels as the kernel that follows reads.
struct Affine {
  const float *gain, *shift;
};

// relu(x * gain + shift) of up to kChunk channels from `channel` on, packed.
template <Packing kPacking>
inline void pack_normalised(Element* out, const float* x, int64_t pixels, int64_t stride,
                            int64_t channel, int64_t channels, const float* gain,
                            const float* shift) {
  gain += channel, shift += channel;
  pack_chunk<kPacking>(
      out, x + channel, pixels, stride, std::min<int64_t>(kChunk, channels - channel),
      [&](Vec v, int64_t, int64_t c) { return relu(v * load(gain + c) + load(shift + c)); });
}

// Stores a tile at `out` and adds its columns, and their squares, to two rows of sums; both about a
// pivot of each channel: see `statistics.sums`.
template <int M, int N>
inline void store_and_measure(const Tile<M, N>& tile, float* out, int64_t stride, int64_t width,
                              const float* pivot, float* total, float* squares) {
#pragma GCC unroll 16
  for (int n = 0; n < N;
       ++n, out += kLanes, pivot += kLanes, total += kLanes, squares += kLanes) {
    Vec sum = {}, square = {}, about = load(pivot);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      store(out + m * stride, tile.v[m][n], width - n * kLanes);
      Vec distance = tile.v[m][n] - about;
      sum += distance;
      square += distance * distance;
    }
    store(total, load(total) + sum);
    store(squares, load(squares) + square);
  }
}

// Packs a 1x1 kernel in panels [D / kWide][C][kWide].
inline void pack_1x1(Pool& pool, const Kernel& kernel, Element* panels) {
  pack_panels(pool, panels, {{}, 1, kernel.inputs, 0}, kernel.outputs,
              [&](int, int64_t k, int64_t column) {
                return kernel.data[k * kernel.outputs + column];
              });
}

// Writes y [B, H, W, D] and its sums [2, D] about a pivot [D]: of values and of their squares.
inline void forward_1x1(Pool& pool, const Map& x, const Affine& norm, const Kernel& kernel,
                        const float* pivot, float* y, float* sums) {
  int64_t c = kernel.inputs, d = kernel.outputs, n = x.pixels();
  int64_t block = 4 * kRows, stride = round_up(d, kWide);
  Operand a{{}, 1, c, block * kChunk};
  Element* panels = scratch<Element>(kWeights, a.depth() * stride);
  pack_1x1(pool, kernel, panels);
  const float* gain = padded(kGain, norm.gain, c);
  const float* shift = padded(kShift, norm.shift, c);
  pivot = padded(kSlope, pivot, d);
  int64_t blocks = ceil_div(n, block), share = round_up(ceil_div(c, ceil_div(d, kWide)), 16);
  int64_t parts = std::min(blocks, std::max<int64_t>(8, 4 * pool.num_threads()));
  float* partial = scratch(kPartial, parts * 2 * stride);
  std::fill(partial, partial + parts * 2 * stride, 0.0f);
  parallel(pool, parts, [&](int64_t part) {
    Element* u = scratch<Element>(kInput, round_up(c, kChunk) * block);
    float* total = partial + part * 2 * stride;
    Operand own = a;
    own.line[0] = u;
    for (int64_t i = part * blocks / parts; i < (part + 1) * blocks / parts; ++i) {
      int64_t first = i * block, pixels = std::min(block, n - first);
      const float* from = x.data + first * x.channels;
      for (int64_t q = 0; q < c; q += kChunk)
        pack_normalised<kChannels>(u + q * block, from, pixels, x.channels, q, c, gain, shift);
      multiply(own, pixels, panels, d, [&](const auto& tile, int64_t p, int64_t j) {
        x.fetch(first + block + p, std::size(tile.v), j / kWide * share, share);
        store_and_measure(tile, y + (first + p) * d + j, d, d - j, pivot + j, total + j,
                          total + stride + j);
      });
    }
  });
  add_parts(pool, partial, parts, 2 * stride, 2, stride, sums, d);
}

}  // namespace densenet
