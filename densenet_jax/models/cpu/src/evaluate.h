// A dense block with fixed statistics.

#pragma once

#include <vector>

#include "block.h"
#include "winograd.h"

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

// A whole bottleneck layer with fixed statistics.
class BottleneckLayer {
 public:
  BottleneckLayer(Pool& pool, const Map& features, int64_t offset, const Affine& norm1,
                  const Kernel& kernel1, const Affine& norm2, const Kernel& kernel2)
      : pool_(pool),
        features_(features),
        offset_(offset),
        inputs_(kernel1.inputs),
        width_(kernel1.outputs),
        lines_(std::clamp<int64_t>(4 * kRows / features.width, 1, features.height)),
        panels_(scratch(kWeights, inputs_ * round_up(width_, kWide) +
                                      Winograd::panels_size(kernel2))),
        near_(pool, kernel2, features.height, features.width,
              panels_ + inputs_ * round_up(width_, kWide)),
        gain1_(padded(kGain, norm1.gain, inputs_)),
        shift1_(padded(kShift, norm1.shift, inputs_)),
        gain2_(padded(kSlope, norm2.gain, width_)),
        shift2_(padded(kConstant, norm2.shift, width_)) {
    const float* w = kernel1.data;
    pack_panels(pool, panels_, {{}, 1, 1, inputs_, 0}, width_,
                [&](int, int, int64_t k, int64_t column) { return w[k * width_ + column]; });
  }

  void run() {
    if (features_.images >= 4 * pool_.num_threads())
      parallel(pool_, features_.images, [&](int64_t image) { run_image(image); });
    else
      run_together();
  }

 private:
  // Every thread has images of its own: the map between the convolutions stays in its cache.
  void run_image(int64_t image) {
    int64_t height = features_.height, ring_lines = lines_ + near_.rows() + 2;
    int64_t line_size = near_.line_size(), done = 0;
    float* ring = scratch(kOutput, ring_lines * line_size);
    std::fill(ring, ring + ring_lines * line_size, 0.0f);
    auto line = [&](int64_t row) { return ring + (row + ring_lines) % ring_lines * line_size; };
    for (int64_t row = 0; row < height;) {
      int64_t lines = std::min(lines_, height - row);
      narrow(image, row, lines, line);
      row += lines;
      // Below the image there are zeros, as above it.
      for (; done < height && (done + near_.rows() < row || row == height); done += near_.rows()) {
        for (int64_t below = height; below <= std::min(done + near_.rows(), height + 1); ++below)
          std::fill(line(below), line(below) + line_size, 0.0f);
        near(image, done, line);
      }
    }
  }

  // All threads work on all images, for few of them: first on the 1x1 convolution, then on the 3x3.
  void run_together() {
    int64_t height = features_.height, line_size = near_.line_size();
    int64_t all = height + near_.rows() + 1;  // and zeros, above and below
    int64_t strips = ceil_div(height, lines_), pairs = ceil_div(height, near_.rows());
    float* between = scratch(kPartial, features_.images * all * line_size);
    auto lines_of = [&](int64_t image) {
      return [=](int64_t row) {
        return between + (image * all + (row < 0 ? all - 1 : row)) * line_size;
      };
    };
    parallel(pool_, features_.images * (strips + 1), [&](int64_t part) {
      int64_t image = part / (strips + 1), strip = part % (strips + 1);
      auto line = lines_of(image);
      if (strip == strips) {
        std::fill(line(height), line(all), 0.0f);
        return;
      }
      int64_t row = strip * lines_, lines = std::min(lines_, height - row);
      for (int64_t i = row; i < row + lines; ++i) std::fill(line(i), line(i + 1), 0.0f);
      narrow(image, row, lines, line);
    });
    parallel(pool_, features_.images * pairs, [&](int64_t part) {
      near(part / pairs, part % pairs * near_.rows(), lines_of(part / pairs));
    });
  }

  // The 1x1 convolution of lines, normalised again.
  template <class F>
  void narrow(int64_t image, int64_t row, int64_t lines, F&& line) {
    int64_t width = features_.width, pixels = lines * width, all = features_.channels;
    float* u = scratch(kInput, round_up(inputs_, kChunk) * pixels);
    const float* from = features_.data + (image * features_.height + row) * width * all;
    for (int64_t q = 0; q < inputs_; q += kChunk)
      pack_normalised(u + q * pixels, from, pixels, all, q, inputs_, gain1_, shift1_);
    Operand own{{u}, 1, 1, inputs_, pixels * kChunk};
    for (int64_t j = 0; j < width_; j += kWide) {
      auto to = [&](int64_t k) {
        return line(row + k) + j / kChunk * near_.padded_width() * kChunk + j % kChunk;
      };
      tiles(pixels, [&](int64_t first, int64_t count) {
        dispatch(count, width_ - j, [&]<int M, int N>() {
          store_normalised(product<M, N>(own, first, panels_ + j * inputs_), first, width, to,
                           gain2_ + j, shift2_ + j);
        });
      });
    }
  }

  // The 3x3 convolution of as many rows as are made at a time.
  template <class F>
  void near(int64_t image, int64_t row, F&& line) {
    int64_t size = features_.height * features_.width * features_.channels;
    near_.rows(row, std::min(row + near_.rows(), features_.height), line,
               features_.data + image * size + offset_, features_.channels);
  }

  Pool& pool_;
  Map features_;
  int64_t offset_, inputs_, width_, lines_;
  float* panels_;
  Winograd near_;
  const float *gain1_, *shift1_, *gain2_, *shift2_;
};

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
      BottleneckLayer(call.pool, features, c, norm, kernel, norm2, kernel2).run();
      c += kernel2.outputs;
    } else {
      plain_layer(call.pool, features, c, norm, kernel);
      c += kernel.outputs;
    }
  }
}

}  // namespace densenet
