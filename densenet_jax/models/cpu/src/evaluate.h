// A dense block with fixed statistics.

#pragma once

#include <vector>

#include "block.h"

namespace densenet {

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

// A whole bottleneck layer with fixed statistics; the map between its convolutions stays in cache.
inline void layer(Pool& pool, const Map& features, int64_t offset, const Affine& norm1,
                  const Kernel& kernel1, const Affine& norm2, const Kernel& kernel2) {
  int64_t c = kernel1.inputs, e = kernel1.outputs, d = kernel2.outputs;
  int64_t height = features.height, width = features.width, all = features.channels;
  int64_t batch_of_lines = std::clamp<int64_t>(4 * kRows / width, 1, height);
  Operand narrow{{}, 1, 1, c, batch_of_lines * width * kChunk};
  Operand near{{}, 3, 3, e, (width + 2) * kChunk};
  const float *w1 = kernel1.data, *w2 = kernel2.data;
  int64_t size1 = c * round_up(e, kWide);
  float* panels1 = scratch(kWeights, size1 + near.depth() * round_up(d, kWide));
  float* panels2 = panels1 + size1;
  pack_panels(pool, panels1, narrow, e,
              [&](int, int, int64_t k, int64_t column) { return w1[k * e + column]; });
  pack_panels(pool, panels2, near, d, [&](int i, int j, int64_t k, int64_t column) {
    return w2[((3 * i + j) * e + k) * d + column];
  });
  const float* gain1 = padded(kGain, norm1.gain, c);
  const float* shift1 = padded(kShift, norm1.shift, c);
  const float* gain2 = padded(kSlope, norm2.gain, e);
  const float* shift2 = padded(kConstant, norm2.shift, e);
  int64_t wanted = std::max<int64_t>(8, 4 * pool.num_threads());
  int64_t strips = std::min(ceil_div(height, 4), ceil_div(wanted, features.images));
  parallel(pool, features.images * strips, [&](int64_t part) {
    int64_t image = part / strips * height, strip = part % strips;
    int64_t begin = strip * height / strips, end = (strip + 1) * height / strips;
    int64_t ring_lines = batch_of_lines + 3, line_size = round_up(e, kChunk) * (width + 2);
    float* ring = scratch(kOutput, ring_lines * line_size);
    float* u = scratch(kInput, round_up(c, kChunk) * batch_of_lines * width);
    // Sums that are not used, about a pivot of 0.
    std::vector<float> sums(2 * round_up(d, kWide)), zeros(round_up(d, kWide));
    std::fill(ring, ring + ring_lines * line_size, 0.0f);
    auto line = [&](int64_t row) { return ring + (row + ring_lines) % ring_lines * line_size; };
    int64_t done = begin;  // first row that has not been convolved
    for (int64_t row = std::max<int64_t>(begin - 1, 0); row < std::min(end + 1, height);) {
      int64_t lines = std::min({batch_of_lines, end + 1 - row, height - row});
      const float* from = features.data + (image + row) * width * all;
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
        float* at = features.data + (image + done) * width * all + offset;
        convolve_line(window, panels2, width, at, all, d, zeros.data(), sums.data(),
                      sums.data() + round_up(d, kWide));
      }
    }
  });
}

// A layer without bottleneck.
inline void plain_layer(Pool& pool, const Map& features, int64_t offset, const Affine& norm,
                        const Kernel& kernel) {
  // Sums that are not used, about a pivot of 0.
  std::vector<float> sums(2 * kernel.outputs), zeros(kernel.outputs);
  forward_3x3(pool, features, norm, kernel, zeros.data(), features, offset, sums.data());
}

// Arrays: x [B, H, W, C], then each layer's gain, shift and kernel, twice if it has a bottleneck.
// The result: features.
inline void block_evaluate(Call& call) {
  Map x = call.array().map(), features = call.result().map();
  copy_channels(call.pool, x, features);
  for (int64_t c = x.channels; call.more();) {
    Affine norm = call.affine();
    Kernel kernel = call.array().kernel();
    if (kernel.size == 1) {
      Affine norm2 = call.affine();
      Kernel kernel2 = call.array().kernel();
      layer(call.pool, features, c, norm, kernel, norm2, kernel2);
      c += kernel2.outputs;
    } else {
      plain_layer(call.pool, features, c, norm, kernel);
      c += kernel.outputs;
    }
  }
}

}  // namespace densenet
