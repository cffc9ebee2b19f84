// 3x3 convolutions with 16 instead of 36 multiplications for 2x2 outputs (Lavin and Gray, 2016: "Fast
// Algorithms for Convolutional Neural Networks", F(2x2, 3x3)), and their transposes.
//
// A convolution y of a map x with a kernel w is A'(Gw * Bx)A for each window: every 4x4 window of
// the input becomes 16 points (B), and so does every kernel (G); their products, summed over
// channels, become 2x2 outputs (A').  The gradient of the input is the convolution of the gradient
// of y with the kernel turned round.  The gradient of the kernel is G'(Ax * B dy), summed over
// windows: 2x2 tiles of the input become 16 points (A), too.

#pragma once

#include "forward.h"

namespace densenet {

constexpr int kPoints = 16;

// The transforms along one dimension: B, A, G, and the transposes of A and G.
inline void window_transform(Vec (&v)[4]) {
  Vec a = v[0] - v[2], b = v[1] + v[2], c = v[2] - v[1], d = v[1] - v[3];
  v[0] = a, v[1] = b, v[2] = c, v[3] = d;
}

inline void tile_transform(Vec a, Vec b, Vec (&v)[4]) {
  v[0] = a, v[1] = a + b, v[2] = a - b, v[3] = -b;
}

inline void kernel_transform(const Vec (&g)[3], Vec (&v)[4]) {
  Vec even = (g[0] + g[2]) * 0.5f, odd = g[1] * 0.5f;
  v[0] = g[0], v[1] = even + odd, v[2] = even - odd, v[3] = g[2];
}

inline void output_transform(const Vec (&v)[4], Vec (&y)[2]) {
  y[0] = v[0] + v[1] + v[2], y[1] = v[1] - v[2] - v[3];
}

inline void kernel_gradient_transform(const Vec (&v)[4], Vec (&g)[3]) {
  g[0] = v[0] + (v[1] + v[2]) * 0.5f, g[1] = (v[1] - v[2]) * 0.5f, g[2] = v[3] + (v[1] + v[2]) * 0.5f;
}

// Rows [first, first + rows) of the windows of a batch of maps, counted through all of its images.
// A window begins one pixel above and left of its 2x2 tile; the tiles cover a map once.
struct Strip {
  Strip(const Map& map, int64_t first, int64_t rows)
      : height(map.height),
        width(map.width),
        across(ceil_div(width, 2)),
        down(ceil_div(height, 2)),
        first(first),
        rows(rows) {}

  // As many rows as `windows` windows need, of all that there are.
  static int64_t rows_of(const Map& map, int64_t windows) {
    return std::clamp<int64_t>(ceil_div(windows, ceil_div(map.width, 2)), 1, all_rows(map));
  }
  static int64_t all_rows(const Map& map) { return map.images * ceil_div(map.height, 2); }

  int64_t windows() const { return rows * across; }
  int64_t first_pixel() const { return line(first / down, first % down * 2); }

  // The number of the first pixel of a row.
  int64_t line(int64_t image, int64_t row) const { return (image * height + row) * width; }

  // Transforms each window.  line(image, row) is the number of the first pixel of a row of the map,
  // and value(pixel) a vector of its channels.  give(point, window, vectors) takes the points of a
  // window, or, with kTogether of 2, mostly of two neighbours, of which the first is even.
  template <int kTogether, class L, class F, class G>
  void transform_windows(L&& line, F&& value, G&& give) const {
    int64_t count = 0;
    for_rows([&](int64_t image, int64_t top) {
      int64_t from = top - 1, begin[4];  // of rows on the map
      bool whole = from >= 0 && from + 4 <= height;
      for (int i = 0; i < 4; ++i)
        begin[i] = on_map(from + i, height) ? line(image, from + i) : -1;
      auto column = [&]<bool kWhole>(int64_t j, Vec(&v)[4]) {
        for (int i = 0; i < 4; ++i)
          v[i] = kWhole || (begin[i] >= 0 && on_map(j, width)) ? value(begin[i] + j) : Vec{};
        window_transform(v);
      };
      Vec v[2 + 2 * kTogether][4];  // of the columns; neighbouring windows share two
      column.template operator()<false>(-1, v[0]);
      column.template operator()<false>(0, v[1]);
      in_groups<kTogether>(
          count, whole ? (width - 1) / 2 : 0, [&]<bool kWhole, int n>(int64_t j) {
            for (int k = 2; k < 2 * n + 2; ++k)
              column.template operator()<kWhole>(2 * j + k - 1, v[k]);
            for (int i = 0; i < 4; ++i) {
              Vec h[n][4];
              for (int w = 0; w < n; ++w) {
                for (int k = 0; k < 4; ++k) h[w][k] = v[2 * w + k][i];
                window_transform(h[w]);
              }
              give_row(give, i, count + j, h);
              v[0][i] = v[2 * n][i], v[1][i] = v[2 * n + 1][i];
            }
          });
      count += across;
    });
  }

  // Transforms each tile; give(point, window, vectors) as above.
  template <int kTogether, class F, class G>
  void transform_tiles(F&& value, G&& give) const {
    int64_t count = 0;
    for_rows([&](int64_t image, int64_t top) {
      in_groups<kTogether>(count, 0, [&]<bool, int n>(int64_t j) {
        Vec v[n][2][4];
        for (int k = 0; k < 2 * n; ++k) {
          bool inside = 2 * j + k < width;
          int64_t pixel = line(image, top) + 2 * j + k;
          tile_transform(inside ? value(pixel) : Vec{},
                         inside && top + 1 < height ? value(pixel + width) : Vec{},
                         v[k / 2][k % 2]);
        }
        for (int i = 0; i < 4; ++i) {
          Vec h[n][4];
          for (int w = 0; w < n; ++w) tile_transform(v[w][0][i], v[w][1][i], h[w]);
          give_row(give, i, count + j, h);
        }
      });
      count += across;
    });
  }

  // Transforms the windows' outputs back: points are point_stride apart, neighbouring windows kWide,
  // and give(pixel, vector) takes each output that lies on the map.
  template <class F>
  void transform_outputs(const float* sums, int64_t point_stride, F&& give) const {
    for_rows([&](int64_t image, int64_t top) {
      for (int64_t j = 0; j < across; ++j, sums += kWide) {
        Vec half[2][4], y[2];
        for (int k = 0; k < 4; ++k) {
          Vec v[4];
          for (int i = 0; i < 4; ++i) v[i] = load(sums + (4 * i + k) * point_stride);
          output_transform(v, y);
          half[0][k] = y[0], half[1][k] = y[1];
        }
        int64_t pixel = line(image, top) + 2 * j;
        for (int64_t i = 0; i < std::min<int64_t>(2, height - top); ++i, pixel += width) {
          output_transform(half[i], y);
          give(pixel, y[0]);
          if (2 * j + 1 < width) give(pixel + 1, y[1]);
        }
      }
    });
  }

  int64_t height, width, across, down, first, rows;

 private:
  template <class F>
  void for_rows(F&& f) const {
    for (int64_t row = first; row < first + rows; ++row) f(row / down, row % down * 2);
  }

  // Calls f<whether all of them are inner ones, n>(first) for groups of n of a row's windows: of
  // kTogether, where they begin at a multiple of it, counted from `before` for the first, else one.
  template <int kTogether, class F>
  void in_groups(int64_t before, int64_t inner, F&& f) const {
    int64_t j = before % kTogether;
    if (j > 0) f.template operator()<false, 1>(0);
    for (; j + kTogether <= inner; j += kTogether) f.template operator()<true, kTogether>(j);
    for (; j + kTogether <= across; j += kTogether) f.template operator()<false, kTogether>(j);
    if (j < across) f.template operator()<false, 1>(j);
  }

  // Gives the four points of row i of n windows.
  template <class G, size_t n>
  static void give_row(G&& give, int i, int64_t window, const Vec (&h)[n][4]) {
    for (int k = 0; k < 4; ++k) {
      Vec v[n];
      for (size_t w = 0; w < n; ++w) v[w] = h[w][k];
      give(4 * i + k, window, v);
    }
  }

  static bool on_map(int64_t i, int64_t size) { return i >= 0 && i < size; }
};

// A kernel [3, 3, C, D] as panels of columns, [D / kWide][kPoints][C][kWide].
class TransformedKernel {
 public:
  static int64_t size(const Kernel& kernel) {
    return kPoints * round_up(kernel.inputs, kPair) * round_up(kernel.outputs, kWide);
  }

  static void pack(Pool& pool, const Kernel& kernel, Element* panels) {
    int64_t groups = ceil_div(kernel.inputs, 8);
    parallel(pool, groups, [&](int64_t group) {
      for (int64_t c = 8 * group; c < std::min(8 * group + 8, kernel.inputs); ++c)
        for (int64_t column = 0; column < round_up(kernel.outputs, kWide); column += kLanes)
          pack(kernel, c, column, panels);
    });
  }

  TransformedKernel(int64_t channels, int64_t columns, const Element* panels)
      : channels_(channels), columns_(columns), panels_(panels) {}

  // In scratch memory, until the next one.
  TransformedKernel(Pool& pool, const Kernel& kernel)
      : TransformedKernel(kernel.inputs, kernel.outputs,
                          scratch<Element>(kWeights, size(kernel))) {
    pack(pool, kernel, const_cast<Element*>(panels_));
  }

  int64_t channels() const { return channels_; }
  int64_t columns() const { return columns_; }

  // Multiplies windows [kPoints][C / kChunk][windows][kChunk].  give(column, sums) takes the products with kWide columns
  // from `column` on, [kPoints][windows][kWide].
  template <class F>
  void multiply(const Element* windows, int64_t count, F&& give) const {
    int64_t point_size = round_up(channels_, kChunk) * count;
    float* sums = scratch(kProducts, kPoints * count * kWide);
    for (int64_t column = 0; column < columns_; column += kWide) {
      for (int64_t point = 0; point < kPoints; ++point) {
        Operand a{{windows + point * point_size}, 1, channels_, count * kChunk};
        const Element* b = panels_ + (column / kWide * kPoints + point) * a.depth() * kWide;
        float* to = sums + point * count * kWide;
        densenet::multiply(a, count, b, std::min<int64_t>(kWide, columns_ - column),
                           [&](const auto& tile, int64_t first, int64_t) {
                             store_tile(tile, to + first * kWide, kWide, kWide);
                           });
      }
      give(column, sums);
    }
  }

 private:
  static void pack(const Kernel& kernel, int64_t channel, int64_t column, Element* panels) {
    int64_t channels = kernel.inputs, columns = kernel.outputs;
    const float* w = kernel.data + channel * columns + column;
    Vec half[4][3], points[4];
    for (int j = 0; j < 3; ++j) {
      Vec g[3];
      for (int i = 0; i < 3; ++i)
        g[i] = load(w + (3 * i + j) * channels * columns, columns - column);
      kernel_transform(g, points);
      for (int i = 0; i < 4; ++i) half[i][j] = points[i];
    }
    int64_t depth = round_up(channels, kPair), row = channel / kPair * kPair;
    Element* to = panels + (column / kWide * kPoints * depth + row) * kWide + column % kWide * kPair;
    for (int i = 0; i < 4; ++i) {
      kernel_transform(half[i], points);
      for (int j = 0; j < 4; ++j) put(to + (4 * i + j) * depth * kWide, channel, points[j]);
    }
  }

  int64_t channels_, columns_;
  const Element* panels_;
};

// The kernel [3, 3, D, C] of the transpose of a convolution with a kernel [3, 3, C, D].
inline Kernel turned_round(Pool& pool, const Kernel& kernel, float* memory) {
  int64_t c = kernel.inputs, d = kernel.outputs;
  parallel(pool, 9, [&](int64_t tap) {
    for (int64_t i = 0; i < c; ++i)
      for (int64_t j = 0; j < d; ++j)
        memory[(tap * d + j) * c + i] = kernel.data[((8 - tap) * c + i) * d + j];
  });
  return {memory, 3, d, c};
}

}  // namespace densenet
