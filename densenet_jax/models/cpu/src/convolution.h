// A convolution of any size and stride on a few channels, for stems.
//
// The values that one row of the kernel reads at an output pixel are contiguous in memory: size *
// channels values, stride * channels before those of the next pixel.  Packed like the channels of a
// pixel they make the convolution a matrix product.

#pragma once

#include "call.h"

namespace densenet {

// The windows of a kernel [size, size, C, D] in x [B, H, W, C], with size / 2 zeros around x.
class Windows {
 public:
  Windows(const Map& x, const Map& y, int64_t size, int64_t stride)
      : x_(x),
        y_(y),
        size(size),
        stride(stride),
        depth(size * x.channels),
        across(round_up(y.width, kPair)),
        row_size(round_up(depth, kChunk) * across) {
    if (size > kMostLines) throw std::invalid_argument("kernel of a convolution too large");
  }

  // Packs the rows that rows [begin, end) of y read, `row_size` apart.
  template <Packing kPacking>
  void pack(Element* out, int64_t image, int64_t begin, int64_t end) const {
    int64_t before = size / 2 * x_.channels, width = x_.width * x_.channels;
    int64_t line_size = std::max((y_.width - 1) * stride * x_.channels + depth, before + width);
    float* line = scratch(kLine, line_size);
    std::fill(line, line + line_size, 0.0f);
    for (int64_t i = 0; i < rows(end - begin); ++i, out += row_size) {
      int64_t row = begin * stride - size / 2 + i;
      if (row < 0 || row >= x_.height) {
        std::fill(out, out + row_size, Element{});
        continue;
      }
      std::copy_n(x_.data + (image * x_.height + row) * width, width, line + before);
      for (int64_t q = 0; q < depth; q += kChunk)
        pack_chunk<kPacking>(out + q * across, line + q, y_.width, stride * x_.channels,
                             std::min<int64_t>(kChunk, depth - q),
                             [](Vec v, int64_t, int64_t) { return v; });
    }
  }
  int64_t rows(int64_t of_y) const { return (of_y - 1) * stride + size; }

 private:
  Map x_, y_;

 public:
  int64_t size, stride, depth, across, row_size;
};

// Rows of y that a task computes: enough tasks for the threads, few enough rows for the cache.
inline int64_t strip_height(Pool& pool, const Map& y) {
  int64_t wanted = std::max<int64_t>(8, 4 * pool.num_threads());
  return std::clamp<int64_t>(y.images * y.height / wanted, 1, 8);
}

// Arrays: x, kernel [size, size, C, D], pivot [D].  Results: y [B, h, w, D], its sums [2, D] about
// the pivot.
inline void convolve(Call& call) {
  Map x = call.array().map();
  Array kernel = call.array();
  const float* given = call.array().data();
  Map y = call.result().map();
  float* sums = call.result().data();
  Windows windows(x, y, kernel.size(0), call.number<int64_t>("stride"));
  int64_t d = y.channels, stride = round_up(d, kWide), strip = strip_height(call.pool, y);
  Operand a{{}, static_cast<int>(windows.size), windows.depth, windows.across * kChunk};
  const float* w = kernel.data();
  const float* pivot = padded(kSlope, given, d);
  Element* panels = scratch<Element>(kWeights, a.depth() * stride);
  pack_panels(call.pool, panels, a, d, [&](int i, int64_t k, int64_t column) {
    return w[(i * windows.depth + k) * d + column];
  });
  int64_t strips = ceil_div(y.height, strip), parts = y.images * strips;
  float* partial = scratch(kPartial, parts * 2 * stride);
  std::fill(partial, partial + parts * 2 * stride, 0.0f);
  parallel(call.pool, parts, [&](int64_t part) {
    int64_t image = part / strips, begin = part % strips * strip;
    int64_t end = std::min(begin + strip, y.height);
    Element* packed = scratch<Element>(kInput, windows.rows(strip) * windows.row_size);
    windows.pack<kChannels>(packed, image, begin, end);
    for (int64_t row = begin; row < end; ++row) {
      Operand own = a;
      for (int64_t i = 0; i < windows.size; ++i)
        own.line[i] = packed + ((row - begin) * windows.stride + i) * windows.row_size;
      float *out = y.data + (image * y.height + row) * y.width * d,
            *total = partial + part * 2 * stride;
      multiply(own, y.width, panels, d, [&](const auto& tile, int64_t p, int64_t j) {
        store_and_measure(tile, out + p * d + j, d, d - j, pivot + j, total + j,
                          total + stride + j);
      });
    }
  });
  add_parts(call.pool, partial, parts, 2 * stride, 2, stride, sums, d);
}

// Arrays: x, the gradient of y, y, constant and slope (see `Gradient`).  The result: the gradient
// of the kernel.
inline void convolve_backward(Call& call) {
  Map x = call.array().map(), d_y = call.array().map();
  const float* out = call.array().data();
  const float* constant = call.array().data();
  Gradient dy{d_y.data, out, d_y.channels, 0, constant, call.array().data()};
  Array kernel = call.result();
  Windows windows(x, d_y, kernel.size(0), call.number<int64_t>("stride"));
  int64_t d = d_y.channels, stride = round_up(d, kWide), strip = strip_height(call.pool, d_y);
  int64_t strips = ceil_div(d_y.height, strip), count = d_y.images * strips;
  int64_t parts = std::min(count, std::max<int64_t>(1, call.pool.num_threads()));
  int64_t rows = round_up(windows.depth, kChunk), size = windows.size * rows * stride;
  Vectors v{nullptr, nullptr, padded(kConstant, dy.constant, d), padded(kSlope, dy.slope, d)};
  float* partial = scratch(kPartial, parts * size);
  std::fill(partial, partial + parts * size, 0.0f);
  parallel(call.pool, parts, [&](int64_t part) {
    int64_t dy_row = round_up(d, kChunk) * windows.across;
    Element* packed = scratch<Element>(kInput, windows.rows(strip) * windows.row_size);
    Element* packed_dy = scratch<Element>(kOutput, strip * dy_row);
    for (int64_t i = part * count / parts; i < (part + 1) * count / parts; ++i) {
      int64_t image = i / strips, begin = i % strips * strip;
      int64_t end = std::min(begin + strip, d_y.height);
      windows.pack<kPixels>(packed, image, begin, end);
      for (int64_t row = begin; row < end; ++row)
        for (int64_t q = 0; q < d; q += kChunk)
          pack_gradient<kPixels>(packed_dy + (row - begin) * dy_row + q * windows.across, dy,
                                 (image * d_y.height + row) * d_y.width, d_y.width, q, d, v);
      for (int64_t line = 0; line < windows.size; ++line)
        for (int64_t q = 0; q < windows.depth; q += kChunk)
          add_kernel_gradient(packed + line * windows.row_size + q * windows.across,
                              windows.stride * windows.row_size,
                              std::min<int64_t>(kChunk, windows.depth - q), packed_dy, dy_row,
                              windows.across * kChunk, d, end - begin, d_y.width,
                              partial + part * size + (line * rows + q) * stride, stride);
    }
  });
  for (int64_t line = 0; line < windows.size; ++line)
    add_parts(call.pool, partial + line * rows * stride, parts, size, windows.depth, stride,
              kernel.data() + line * windows.depth * d, d);
}

}  // namespace densenet
