// The transposes of BN-ReLU-convolution: one pass over the maps computes every gradient.
//
// The gradient of the output is completed while it is packed: d_out + slope * out + constant.  The
// mask of the ReLU is computed again, and the sums for gain and shift are taken from registers.
// Each part of the batch has its own gradient of the kernel; these are added at the end.

#pragma once

#include "forward.h"

namespace densenet {

// Per-channel vectors of a stage, padded with zeros.
struct Vectors {
  const float *gain, *shift, *constant, *slope;
};

// The gradient of an output [B, H, W, > offset], to which constant + slope * out is added.
struct Gradient {
  const float *d_out, *out;
  int64_t channels, offset;
  const float *constant, *slope;
};

// The results of the transposes besides the gradient of x.
struct Results {
  float *kernel, *shift, *gain;
};

inline Vectors padded_vectors(const Affine& norm, const Gradient& dy, const Kernel& kernel) {
  return {padded(kGain, norm.gain, kernel.inputs), padded(kShift, norm.shift, kernel.inputs),
          padded(kConstant, dy.constant, kernel.outputs), padded(kSlope, dy.slope, kernel.outputs)};
}

// The completed gradient of up to kChunk channels from `channel` on, packed.
template <Packing kPacking>
inline void pack_gradient(Element* packed, const Gradient& dy, int64_t pixel, int64_t pixels,
                          int64_t channel, int64_t channels, const Vectors& v,
                          Element* paired = nullptr) {
  int64_t count = std::min<int64_t>(kChunk, channels - channel), stride = dy.channels;
  int64_t at = pixel * stride + dy.offset + channel;
  const float *constant = v.constant + channel, *slope = v.slope + channel, *out = dy.out + at;
  pack_chunk<kPacking>(
      packed, dy.d_out + at, pixels, stride, count,
      [&](Vec d, int64_t p, int64_t c) {
        return d + load(constant + c) + load(slope + c) * load(out + p * stride + c, count - c);
      },
      paired);
}

// Takes a tile of the gradient of relu(x * gain + shift): masks it, sums it for shift and gain, and
// adds it times gain at `out`.
template <int M, int N>
inline void store_gradient(const Tile<M, N>& tile, const float* x, int64_t x_stride, float* out,
                           int64_t stride, int64_t width, const float* gain, const float* shift,
                           float* d_shift, float* d_gain) {
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    int64_t c = n * kLanes, count = width - c;
    Vec g = load(gain + c), s = load(shift + c), sum = {}, product = {};
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      Vec value = load(x + m * x_stride + c, count);
      Vec du = value * g + s > 0 ? tile.v[m][n] : Vec{};
      sum += du;
      product += du * value;
      float* to = out + m * stride + c;
      store(to, load(to, count) + du * g, count);
    }
    store(d_shift + c, load(d_shift + c) + sum);
    store(d_gain + c, load(d_gain + c) + product);
  }
}

// One part's sums: the gradients of the kernel [rows][stride], of shift and gain.
struct Sums {
  Sums(int64_t rows, int64_t stride, int64_t channels)
      : kernel(rows * stride), vector(round_up(channels, kChunk)), size(kernel + 2 * vector) {}

  // Writes the gradients of shift and gain.
  void give(Pool& pool, const float* partial, int64_t parts, int64_t channels,
            const Results& results) const {
    partial += kernel;
    add_parts(pool, partial, parts, size, 1, channels, results.shift, channels);
    add_parts(pool, partial + vector, parts, size, 1, channels, results.gain, channels);
  }
  int64_t kernel, vector, size;
};

// Adds a tile row after row of the gradient of a kernel: channels `c` ... of x, columns of y.
inline void add_kernel_gradient(const Element* x, int64_t x_line, int64_t channels,
                                const Element* y, int64_t y_line, int64_t y_chunk, int64_t columns,
                                int64_t lines, int64_t pixels, float* out, int64_t stride) {
  for (int64_t n = 0; n < columns; n += kWide) {
    const Element* b = y + n / kChunk * y_chunk + n % kChunk * kPair;
    tiles(channels, [&](int64_t c, int64_t m) {
      dispatch(m, columns - n, [&]<int M, int N>() {
        outer_product<M, N>(x + c * kPair, x_line, b, y_line, lines, pixels, out + c * stride + n,
                            stride);
      });
    });
  }
}

// Adds to d_x [B, H, W, all of x's channels].
inline void backward_1x1(Pool& pool, const Map& x, const Affine& norm, const Kernel& kernel,
                         const Gradient& dy, float* d_x, const Results& results) {
  int64_t c = kernel.inputs, d = kernel.outputs, n = x.pixels();
  int64_t block = kBlock, stride = round_up(d, kWide), all = x.channels;
  Map gradient = x.with(d_x, all);
  Operand a{{}, 1, d, block * kChunk};
  const float* w = kernel.data;
  Element* panels = scratch<Element>(kWeights, a.depth() * round_up(c, kWide));
  pack_panels(pool, panels, a, c,
              [&](int, int64_t k, int64_t column) { return w[column * d + k]; });
  Vectors v = padded_vectors(norm, dy, kernel);
  Sums sums(round_up(c, kChunk), stride, c);
  int64_t blocks = ceil_div(n, block);
  int64_t parts = std::min(blocks, std::max<int64_t>(1, pool.num_threads()));
  float* partial = scratch(kPartial, parts * sums.size);
  parallel(pool, parts, [&](int64_t part) {
    Element* packed = scratch<Element>(kOutput, round_up(d, kChunk) * block);
    Element* paired =
        kPair > 1 ? scratch<Element>(kPaired, round_up(d, kChunk) * block) : packed;
    Element* u = scratch<Element>(kInput, kChunk * block);
    float* own = partial + part * sums.size;
    std::fill(own, own + sums.size, 0.0f);
    Operand rows = a;
    rows.line[0] = packed;
    for (int64_t i = part * blocks / parts; i < (part + 1) * blocks / parts; ++i) {
      int64_t first = i * block, pixels = std::min(block, n - first);
      for (int64_t q = 0; q < d; q += kChunk)
        pack_gradient<kBoth>(packed + q * block, dy, first, pixels, q, d, v, paired + q * block);
      const float* from = x.data + first * all;
      float* to = d_x + first * all;
      for (int64_t q = 0; q < c; q += kChunk) {
        int64_t count = std::min<int64_t>(kChunk, c - q);
        pack_normalised<kPixels>(u, from, pixels, all, q, c, v.gain, v.shift);
        add_kernel_gradient(u, 0, count, paired, 0, block * kChunk, d, 1, pixels, own + q * stride,
                            stride);
        multiply(rows, pixels, panels + q * a.depth(), count,
                 [&](const auto& tile, int64_t p, int64_t j) {
                   j += q;
                   int64_t next = first + block + p, at = p * all + j;
                   x.fetch(next, std::size(tile.v), j, std::min<int64_t>(kWide, c - j));
                   gradient.fetch(next, std::size(tile.v), j, std::min<int64_t>(kWide, c - j));
                   float *to_shift = own + sums.kernel + j, *to_gain = to_shift + sums.vector;
                   store_gradient(tile, from + at, all, to + at, all, c - j, v.gain + j,
                                  v.shift + j, to_shift, to_gain);
                 });
      }
    }
  });
  add_parts(pool, partial, parts, sums.size, c, stride, results.kernel, d);
  sums.give(pool, partial, parts, c, results);
}

}  // namespace densenet
