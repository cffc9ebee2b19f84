// A dense block with fixed statistics.

#pragma once

#include <vector>

#include "block.h"

namespace densenet {

// Takes a tile: relu(tile * gain + shift), `stride` apart at `out`.
template <int M, int N>
inline void store_normalised(const Tile<M, N>& tile, float* out, int64_t stride, int64_t width,
                             const float* gain, const float* shift) {
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    int64_t c = n * kLanes;
    Vec g = load(gain + c), s = load(shift + c);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
      store(out + m * stride + c, relu(tile.v[m][n] * g + s), width - c);
  }
}

inline void pack(Pool& pool, const Kernel& kernel, Element* panels) {
  if (kernel.size == 3)
    TransformedKernel::pack(pool, kernel, panels);
  else
    pack_1x1(pool, kernel, panels);
}

// Arrays: kernels.  Results: each of them packed.
inline void pack(Call& call) {
  while (call.more()) {
    Kernel kernel = call.array().kernel();
    pack(call.pool, kernel, call.result().panels());
  }
}

// A normalisation and a packed kernel.
struct Layer {
  Affine norm;
  int64_t channels;
  bool near;
  const Element* panels;
};

// Packs the kernel in scratch memory if the call has it as it is.
inline Layer take_layer(Call& call) {
  Array gain = call.array(), shift = call.array(), weights = call.array();
  Affine norm{gain.data(), shift.data()};
  if (weights.rank() != 4 || weights.size(1) == kPoints)
    return {norm, gain.size(0), weights.rank() == 4, weights.panels()};
  Kernel kernel = weights.kernel();
  bool near = kernel.size == 3;
  int64_t depth = round_up(kernel.inputs, kPair), columns = round_up(kernel.outputs, kWide);
  Element* panels = near ? scratch<Element>(kWeights, TransformedKernel::size(kernel))
                         : scratch<Element>(kPanels, depth * columns);
  pack(call.pool, kernel, panels);
  return {norm, gain.size(0), near, panels};
}

// A whole bottleneck layer with fixed statistics.
class BottleneckLayer {
 public:
  BottleneckLayer(Pool& pool, const Map& features, int64_t offset, const Layer& narrow,
                  const Layer& near, int64_t growth)
      : pool_(pool),
        features_(features),
        offset_(offset),
        inputs_(narrow.channels),
        width_(near.channels),
        outputs_(growth),
        lines_(std::clamp<int64_t>(4 * kRows / features.width, 1, features.height)),
        panels_(narrow.panels),
        weights_(width_, growth, near.panels),
        gain1_(padded(kGain, narrow.norm.gain, inputs_)),
        shift1_(padded(kShift, narrow.norm.shift, inputs_)),
        gain2_(padded(kSlope, near.norm.gain, width_)),
        shift2_(padded(kConstant, near.norm.shift, width_)) {}

  void run() {
    if (pool_.share() == 1 || features_.images >= 4 * pool_.num_threads())
      parallel(pool_, features_.images, [&](int64_t image) { run_image(image); });
    else
      run_together();
  }

 private:
  // Every thread has images of its own: the map between the convolutions stays in its cache, as a
  // ring of lines.
  void run_image(int64_t image) {
    int64_t height = features_.height, down = ceil_div(height, 2), done = 0;
    int64_t rows = std::min(Strip::rows_of(features_, kNear), down);
    int64_t ring = round_up(2 * rows + 2 + lines_, lines_), size = features_.width * width_;
    float* between = scratch(kOutput, ring * size);
    auto line = [=, this](int64_t, int64_t row) { return row % ring * features_.width; };
    for (int64_t row = 0; row < height;) {
      int64_t lines = std::min(lines_, height - row);
      narrow(image, row, lines, between + row % ring * size);
      row += lines;
      for (; done < down; done += rows) {
        int64_t end = std::min(done + rows, down);
        if (2 * end >= row && row < height) break;  // the last windows read one more line
        near({features_, image * down + done, end - done}, between, line);
      }
    }
  }

  // All threads work on all images, for few of them: first on the 1x1 convolution, then on the 3x3.
  void run_together() {
    int64_t height = features_.height, strips = ceil_div(height, lines_);
    Map between = features_.with(scratch(kPartial, features_.pixels() * width_), width_);
    parallel(pool_, features_.images * strips, [&](int64_t part) {
      int64_t image = part / strips, row = part % strips * lines_;
      narrow(image, row, std::min(lines_, height - row), between.at(image, row, 0));
    });
    int64_t all = Strip::all_rows(features_), rows = Strip::rows_of(features_, kNear);
    parallel(pool_, ceil_div(all, rows), [&](int64_t part) {
      Strip strip(features_, part * rows, std::min(rows, all - part * rows));
      near(strip, between.data,
           [&](int64_t image, int64_t row) { return strip.line(image, row); });
    });
  }

  // The 1x1 convolution of lines, normalised again.
  void narrow(int64_t image, int64_t row, int64_t lines, float* to) {
    int64_t pixels = lines * features_.width;
    Element* u = scratch<Element>(kInput, round_up(inputs_, kChunk) * pixels);
    const float* from = features_.at(image, row, 0);
    for (int64_t q = 0; q < inputs_; q += kChunk)
      pack_normalised<false>(u + q * pixels, from, pixels, features_.channels, q, inputs_, gain1_,
                             shift1_);
    Operand own{{u}, 1, inputs_, pixels * kChunk};
    for (int64_t j = 0; j < width_; j += kWide)
      tiles(pixels, [&](int64_t first, int64_t count) {
        dispatch(count, width_ - j, [&]<int M, int N>() {
          store_normalised(product<M, N>(own, first, panels_ + j * own.depth()),
                           to + first * width_ + j, width_, width_ - j, gain2_ + j, shift2_ + j);
        });
      });
  }

  // The 3x3 convolution of a strip; rows of the map between begin at pixel line(image, row).
  template <class F>
  void near(const Strip& strip, const float* between, F&& line) {
    int64_t windows = strip.windows();
    Element* points =
        scratch<Element>(kTransformed, kPoints * round_up(width_, kChunk) * windows);
    auto value = [&](int64_t channel) {
      const float* from = between + channel;
      return [from, stride = width_, count = width_ - channel](int64_t pixel) {
        return load(from + pixel * stride, count);
      };
    };
    transform_windows(strip, width_, line, value, points);
    weights_.multiply(points, windows, [&](int64_t first, const float* products) {
      for (int64_t j = first; j < std::min(first + kWide, outputs_); j += kLanes)
        strip.transform_outputs(
            products + j - first, windows * kWide,
            [&](int64_t pixel, Vec y) {
              store(features_.data + pixel * features_.channels + offset_ + j, y, outputs_ - j);
            });
    });
  }

  static constexpr int64_t kNear = 14;  // windows at a time, at least

  Pool& pool_;
  Map features_;
  int64_t offset_, inputs_, width_, outputs_, lines_;
  const Element* panels_;
  TransformedKernel weights_;
  const float *gain1_, *shift1_, *gain2_, *shift2_;
};

// A layer without bottleneck.
inline void plain_layer(Pool& pool, const Map& features, int64_t offset, const Layer& layer,
                        int64_t growth) {
  // Sums that are not used, about a pivot of 0.
  std::vector<float> sums(2 * growth), zeros(growth);
  forward_3x3(pool, features, layer.norm, {layer.channels, growth, layer.panels}, zeros.data(),
              features, offset, sums.data());
}

// Arrays: x [B, H, W, C], then each layer's gain, shift and kernel, packed or not, twice if it has
// a bottleneck.  The result: features.
inline void block_evaluate(Call& call) {
  Map x = call.array().map(), features = call.result().map();
  int64_t growth = call.number<int64_t>("growth");
  copy_channels(call.pool, x, features);
  for (int64_t c = x.channels; call.more(); c += growth) {
    Layer layer = take_layer(call);
    if (layer.near)
      plain_layer(call.pool, features, c, layer, growth);
    else
      BottleneckLayer(call.pool, features, c, layer, take_layer(call), growth).run();
  }
}

}  // namespace densenet
