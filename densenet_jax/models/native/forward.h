// BN-ReLU-convolution: normalised while it is packed, measured while it is stored.

#pragma once

#include <vector>

#include "tiles.h"

namespace densenet {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

// Slots of scratch memory: of the calling thread, then of each working one.
enum { kWeights, kPartial, kGain, kShift, kSlope, kConstant, kInput, kOutput };

// A buffer [B, H, W, C].
struct Shape {
  explicit Shape(ffi::Span<const int64_t> d)
      : images(d[0]), height(d[1]), width(d[2]), channels(d[3]) {}
  int64_t pixels() const { return images * height * width; }
  int64_t images, height, width, channels;
};

// relu(x * gain + shift) of up to kChunk channels from `channel` on, packed.
inline void pack_normalised(float* out, const float* x, int64_t pixels, int64_t stride,
                            int64_t channel, int64_t channels, const float* gain,
                            const float* shift) {
  gain += channel, shift += channel;
  pack_chunk(out, x + channel, pixels, stride, std::min<int64_t>(kChunk, channels - channel),
             [&](Vec v, int64_t, int64_t c) { return relu(v * load(gain + c) + load(shift + c)); });
}

// Stores a tile at `out` and adds its columns, and their squares, to two rows of sums.
template <int M, int N>
inline void store_and_measure(const Tile<M, N>& tile, float* out, int64_t stride, int64_t width,
                              float* total, float* squares) {
  for (int n = 0; n < N; ++n, out += kLanes, total += kLanes, squares += kLanes) {
    Vec sum = {}, square = {};
    for (int m = 0; m < M; ++m) {
      store(out + m * stride, tile.v[m][n], width - n * kLanes);
      sum += tile.v[m][n];
      square += tile.v[m][n] * tile.v[m][n];
    }
    store(total, load(total) + sum);
    store(squares, load(squares) + square);
  }
}

// All panels of a line of `pixels` pixels.
inline void convolve_line(const Operand& a, const float* panels, int64_t pixels, float* out,
                          int64_t stride, int64_t columns, float* total, float* squares) {
  for (int64_t j = 0; j < columns; j += kWide) {
    const float* b = panels + j * a.depth();
    tiles(pixels, [&](int64_t first, int64_t count) {
      dispatch(count, columns - j, [&]<int M, int N>() {
        store_and_measure(product<M, N>(a, first, b), out + first * stride + j, stride, columns - j,
                          total + j, squares + j);
      });
    });
  }
}

inline ffi::Error forward_1x1(ffi::ThreadPool pool, Floats x, Floats gains, Floats shifts,
                              Floats weights, Result y, Result sums) {
  Shape shape(x.dimensions());
  int64_t c = weights.dimensions()[2], d = weights.dimensions()[3], n = shape.pixels();
  int64_t block = 4 * kRows, stride = round_up(d, kWide);
  Operand a{{}, 1, 1, c, block * kChunk};
  const float *w = weights.typed_data(), *source = x.typed_data();
  float* panels = scratch(kWeights, a.depth() * stride);
  pack_panels(pool, panels, a, d,
              [&](int, int, int64_t k, int64_t column) { return w[k * d + column]; });
  const float* gain = padded(kGain, gains.typed_data(), c);
  const float* shift = padded(kShift, shifts.typed_data(), c);
  int64_t blocks = ceil_div(n, block);
  int64_t parts = std::min(blocks, std::max<int64_t>(8, 4 * pool.num_threads()));
  float* partial = scratch(kPartial, parts * 2 * stride);
  std::fill(partial, partial + parts * 2 * stride, 0.0f);
  float* out = y->typed_data();
  parallel(pool, parts, [&](int64_t part) {
    float* u = scratch(kInput, round_up(c, kChunk) * block);
    float* total = partial + part * 2 * stride;
    Operand own = a;
    own.line[0] = u;
    for (int64_t i = part * blocks / parts; i < (part + 1) * blocks / parts; ++i) {
      int64_t first = i * block, pixels = std::min(block, n - first);
      const float* from = source + first * shape.channels;
      for (int64_t q = 0; q < c; q += kChunk)
        pack_normalised(u + q * block, from, pixels, shape.channels, q, c, gain, shift);
      convolve_line(own, panels, pixels, out + first * d, d, d, total, total + stride);
    }
  });
  add_parts(pool, partial, parts, 2 * stride, 2, stride, sums->typed_data(), d);
  return ffi::Error::Success();
}

inline ffi::Error forward_3x3(ffi::ThreadPool pool, Floats x, Floats gains, Floats shifts,
                              Floats weights, Floats, int64_t offset, Result into, Result sums) {
  Shape shape(x.dimensions());
  int64_t c = weights.dimensions()[2], d = weights.dimensions()[3];
  int64_t height = shape.height, width = shape.width, stride = round_up(d, kWide);
  int64_t to = into->dimensions()[3];
  Operand a{{}, 3, 3, c, (width + 2) * kChunk};
  const float *w = weights.typed_data(), *source = x.typed_data();
  float* panels = scratch(kWeights, a.depth() * stride);
  pack_panels(pool, panels, a, d, [&](int i, int j, int64_t k, int64_t column) {
    return w[((3 * i + j) * c + k) * d + column];
  });
  const float* gain = padded(kGain, gains.typed_data(), c);
  const float* shift = padded(kShift, shifts.typed_data(), c);
  // Whole images, or strips of them where there are few.
  int64_t wanted = std::max<int64_t>(8, 4 * pool.num_threads());
  int64_t strips = std::min(ceil_div(height, 4), ceil_div(wanted, shape.images));
  int64_t parts = shape.images * strips;
  float* partial = scratch(kPartial, parts * 2 * stride);
  std::fill(partial, partial + parts * 2 * stride, 0.0f);
  float* out = into->typed_data() + offset;
  parallel(pool, parts, [&](int64_t part) {
    int64_t image = part / strips, strip = part % strips;
    int64_t begin = strip * height / strips, end = (strip + 1) * height / strips;
    int64_t line_size = round_up(c, kChunk) * (width + 2);
    float* ring = scratch(kInput, 3 * line_size);
    float* total = partial + part * 2 * stride;
    std::fill(ring, ring + 3 * line_size, 0.0f);
    for (int64_t row = begin - 1; row <= end; ++row) {
      float* line = ring + (row + 3) % 3 * line_size;
      if (row < 0 || row == height) {
        std::fill(line, line + line_size, 0.0f);
      } else {
        const float* from = source + (image * height + row) * width * shape.channels;
        for (int64_t q = 0; q < c; q += kChunk)
          pack_normalised(line + q * (width + 2) + kChunk, from, width, shape.channels, q, c, gain,
                          shift);
      }
      if (row <= begin) continue;
      Operand own = a;
      for (int i = 0; i < 3; ++i) own.line[i] = ring + (row + 1 + i) % 3 * line_size;
      float* at = out + (image * height + row - 1) * width * to;
      convolve_line(own, panels, width, at, to, d, total, total + stride);
    }
  });
  add_parts(pool, partial, parts, 2 * stride, 2, stride, sums->typed_data(), d);
  return ffi::Error::Success();
}

// Takes a tile of pixels `first` ... of lines of `width`: relu(tile * gain + shift) into padded
// lines of a packed map, `line_size` apart, from line(0) on.
template <int M, int N, class F>
inline void store_normalised(const Tile<M, N>& tile, int64_t first, int64_t width, F&& line,
                             const float* gain, const float* shift) {
  for (int n = 0; n < N; ++n) {
    Vec g = load(gain + n * kLanes), s = load(shift + n * kLanes);
    for (int m = 0; m < M; ++m)
      store(line((first + m) / width) + ((first + m) % width + 1) * kChunk + n * kLanes,
            relu(tile.v[m][n] * g + s));
  }
}

// A whole bottleneck layer with fixed statistics: what is between its convolutions stays in cache.
inline ffi::Error layer(ffi::ThreadPool pool, Floats, Floats gains1, Floats shifts1,
                        Floats weights1, Floats gains2, Floats shifts2, Floats weights2,
                        int64_t offset, Result features) {
  Shape shape(features->dimensions());
  int64_t c = weights1.dimensions()[2], e = weights1.dimensions()[3], d = weights2.dimensions()[3];
  int64_t height = shape.height, width = shape.width, all = shape.channels;
  int64_t batch_of_lines = std::clamp<int64_t>(4 * kRows / width, 1, height);
  Operand narrow{{}, 1, 1, c, batch_of_lines * width * kChunk};
  Operand near{{}, 3, 3, e, (width + 2) * kChunk};
  const float *w1 = weights1.typed_data(), *w2 = weights2.typed_data();
  int64_t size1 = c * round_up(e, kWide);
  float* panels1 = scratch(kWeights, size1 + near.depth() * round_up(d, kWide));
  float* panels2 = panels1 + size1;
  pack_panels(pool, panels1, narrow, e,
              [&](int, int, int64_t k, int64_t column) { return w1[k * e + column]; });
  pack_panels(pool, panels2, near, d, [&](int i, int j, int64_t k, int64_t column) {
    return w2[((3 * i + j) * e + k) * d + column];
  });
  const float* gain1 = padded(kGain, gains1.typed_data(), c);
  const float* shift1 = padded(kShift, shifts1.typed_data(), c);
  const float* gain2 = padded(kSlope, gains2.typed_data(), e);
  const float* shift2 = padded(kConstant, shifts2.typed_data(), e);
  int64_t wanted = std::max<int64_t>(8, 4 * pool.num_threads());
  int64_t strips = std::min(ceil_div(height, 4), ceil_div(wanted, shape.images));
  float* data = features->typed_data();
  parallel(pool, shape.images * strips, [&](int64_t part) {
    int64_t image = part / strips * height, strip = part % strips;
    int64_t begin = strip * height / strips, end = (strip + 1) * height / strips;
    int64_t ring_lines = batch_of_lines + 3, line_size = round_up(e, kChunk) * (width + 2);
    float* ring = scratch(kOutput, ring_lines * line_size);
    float* u = scratch(kInput, round_up(c, kChunk) * batch_of_lines * width);
    std::vector<float> sums(2 * round_up(d, kWide));
    std::fill(ring, ring + ring_lines * line_size, 0.0f);
    auto line = [&](int64_t row) { return ring + (row + ring_lines) % ring_lines * line_size; };
    int64_t done = begin;  // first row that has not been convolved
    for (int64_t row = std::max<int64_t>(begin - 1, 0); row < std::min(end + 1, height);) {
      int64_t lines = std::min({batch_of_lines, end + 1 - row, height - row});
      const float* from = data + (image + row) * width * all;
      for (int64_t q = 0; q < c; q += kChunk)
        pack_normalised(u + q * batch_of_lines * width, from, lines * width, all, q, c, gain1,
                        shift1);
      Operand own = narrow;
      own.line[0] = u;
      for (int64_t j = 0; j < e; j += kWide) {
        const float* b = panels1 + j * c;
        tiles(lines * width, [&](int64_t first, int64_t count) {
          dispatch(count, e - j, [&]<int M, int N>() {
            auto to = [&](int64_t k) {
              return line(row + k) + j / kChunk * near.chunk_stride + j % kChunk;
            };
            store_normalised(product<M, N>(own, first, b), first, width, to, gain2 + j, shift2 + j);
          });
        });
      }
      row += lines;
      if (row == height) std::fill(line(height), line(height) + line_size, 0.0f);
      // Below the image there are zeros, as above it.
      for (; done < end && (done + 1 < row || row == height); ++done) {
        Operand window = near;
        for (int i = 0; i < 3; ++i) window.line[i] = line(done - 1 + i);
        float* at = data + (image + done) * width * all + offset;
        convolve_line(window, panels2, width, at, all, d, sums.data(),
                      sums.data() + round_up(d, kWide));
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace densenet
