// 3x3 convolutions of packed maps with 16 instead of 36 multiplications for 2x2 outputs (Lavin and
// Gray, 2016: "Fast Algorithms for Convolutional Neural Networks", F(2x2, 3x3)).
//
// Each 4x4 window of the input and each 3x3 kernel becomes 16 values, which are multiplied one by
// one and summed over channels: 16 matrix products over windows, instead of 36 over pixels.

#pragma once

#include "forward.h"

namespace densenet {

constexpr int kPoints = 16;

// The transforms of windows and kernels along one dimension.
inline void window_transform(Vec (&v)[4]) {
  Vec a = v[0] - v[2], b = v[1] + v[2], c = v[2] - v[1], d = v[1] - v[3];
  v[0] = a, v[1] = b, v[2] = c, v[3] = d;
}

inline void kernel_transform(const Vec (&g)[3], Vec (&v)[4]) {
  Vec even = (g[0] + g[2]) * 0.5f, odd = g[1] * 0.5f;
  v[0] = g[0], v[1] = even + odd, v[2] = even - odd, v[3] = g[2];
}

class Winograd {
 public:
  // Of a kernel [3, 3, C, D], transformed into panels of columns for each point.
  Winograd(Pool& pool, const Kernel& kernel, int64_t height, int64_t width, float* panels)
      : channels_(kernel.inputs),
        columns_(kernel.outputs),
        width_(width),
        across_(ceil_div(width, 2)),
        down_(std::clamp<int64_t>(ceil_div(14, across_), 1, ceil_div(height, 2))),
        size_(panels_size(kernel) / kPoints),
        panels_(panels) {
    parallel(pool, ceil_div(channels_, 8), [&](int64_t part) {
      for (int64_t c = 8 * part; c < std::min(8 * part + 8, channels_); ++c)
        for (int64_t column = 0; column < round_up(columns_, kWide); column += kLanes)
          pack(kernel.data + c * columns_, c, column);
    });
  }

  static int64_t panels_size(const Kernel& kernel) {
    return kPoints * kernel.inputs * round_up(kernel.outputs, kWide);
  }
  int64_t rows() const { return 2 * down_; }                  // of the output, at a time
  int64_t padded_width() const { return 2 * across_ + 2; }    // of a line, with zeros around it
  int64_t line_size() const { return round_up(channels_, kChunk) * padded_width(); }

  // Writes rows [begin, min(begin + rows(), end)) of the output.  line(i) is row i of the input,
  // normalised and packed, for begin - 1 <= i <= begin + rows(); what lies behind the last row that
  // is written does not matter.
  template <class F>
  void rows(int64_t begin, int64_t end, F&& line, float* out, int64_t stride) const {
    int64_t down = std::min(down_, ceil_div(end - begin, 2)), windows = down * across_;
    int64_t input_size = round_up(channels_, kChunk) * windows;
    int64_t padded = round_up(columns_, kWide), output_size = padded * windows;
    float* inputs = scratch(kTransformed, kPoints * input_size);
    float* outputs = scratch(kProducts, kPoints * output_size);
    for (int64_t i = 0; i < down; ++i) {
      const float* lines[4];
      for (int k = 0; k < 4; ++k) lines[k] = line(begin + 2 * i - 1 + k);
      for (int64_t j = 0; j < across_; ++j)
        transform_window(lines, j, inputs + (i * across_ + j) * kChunk, input_size,
                         windows * kChunk);
    }
    for (int point = 0; point < kPoints; ++point) {
      Operand a{{inputs + point * input_size}, 1, 1, channels_, windows * kChunk};
      for (int64_t column = 0; column < columns_; column += kWide) {
        const float* b = panels_ + point * size_ + column * channels_;
        float* to = outputs + point * output_size + column;
        tiles(windows, [&](int64_t first, int64_t count) {
          dispatch(count, columns_ - column, [&]<int M, int N>() {
            Tile<M, N> tile = product<M, N>(a, first, b);
            for (int m = 0; m < M; ++m)
              for (int n = 0; n < N; ++n)
                store(to + (first + m) * padded + n * kLanes, tile.v[m][n]);
          });
        });
      }
    }
    for (int64_t i = 0; i < windows; ++i) {
      int64_t row = begin + i / across_ * 2, column = i % across_ * 2;
      for (int64_t c = 0; c < columns_; c += kLanes)
        write_outputs(outputs + i * padded + c, output_size, end - row, width_ - column,
                      out + (row * width_ + column) * stride + c, stride, columns_ - c);
    }
  }

 private:
  // Transforms the kernel's columns of one channel.
  void pack(const float* w, int64_t channel, int64_t column) const {
    Vec half[4][3], points[4];
    for (int j = 0; j < 3; ++j) {
      Vec g[3];
      for (int i = 0; i < 3; ++i)
        g[i] = load(w + (3 * i + j) * channels_ * columns_ + column, columns_ - column);
      kernel_transform(g, points);
      for (int i = 0; i < 4; ++i) half[i][j] = points[i];
    }
    int64_t at = (column / kWide * channels_ + channel) * kWide + column % kWide;
    for (int i = 0; i < 4; ++i) {
      kernel_transform(half[i], points);
      for (int j = 0; j < 4; ++j) store(panels_ + (4 * i + j) * size_ + at, points[j]);
    }
  }

  void transform_window(const float* const (&lines)[4], int64_t across, float* out,
                        int64_t point_stride, int64_t chunk_stride) const {
    for (int64_t q = 0; q < channels_; q += kChunk, out += chunk_stride) {
      int64_t from = q * padded_width() + 2 * across * kChunk;
      for (int64_t c = 0; c < std::min<int64_t>(kChunk, channels_ - q); c += kLanes) {
        Vec v[4][4];
        for (int j = 0; j < 4; ++j) {
          Vec column[4];
          for (int i = 0; i < 4; ++i) column[i] = load(lines[i] + from + j * kChunk + c);
          window_transform(column);
          for (int i = 0; i < 4; ++i) v[i][j] = column[i];
        }
        for (int i = 0; i < 4; ++i) {
          window_transform(v[i]);
          for (int j = 0; j < 4; ++j) store(out + (4 * i + j) * point_stride + c, v[i][j]);
        }
      }
    }
  }

  // Writes up to 2x2 outputs of the sums of a window.
  void write_outputs(const float* sums, int64_t point_stride, int64_t rows, int64_t columns,
                     float* out, int64_t stride, int64_t count) const {
    Vec half[2][4];
    for (int j = 0; j < 4; ++j) {
      auto m = [&](int i) { return load(sums + (4 * i + j) * point_stride); };
      half[0][j] = m(0) + m(1) + m(2);
      half[1][j] = m(1) - m(2) - m(3);
    }
    for (int64_t i = 0; i < std::min<int64_t>(2, rows); ++i) {
      const Vec* h = half[i];
      float* to = out + i * width_ * stride;
      store(to, h[0] + h[1] + h[2], count);
      if (columns > 1) store(to + stride, h[1] - h[2] - h[3], count);
    }
  }

  int64_t channels_, columns_, width_, across_, down_, size_;
  float* panels_;
};

}  // namespace densenet
