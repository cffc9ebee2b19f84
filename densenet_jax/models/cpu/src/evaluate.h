// A dense block with fixed statistics, and the transition before it.

#pragma once

#include <vector>

#include "block.h"

namespace densenet {

inline void pack(Pool& pool, const Kernel& kernel, Element* panels) {
  if (kernel.size == 3)
    TransformedKernel::pack(pool, kernel, panels);
  else
    pack_1x1(pool, kernel, panels);
}

inline int64_t packed_size(const Kernel& kernel) {
  if (kernel.size == 3) return TransformedKernel::size(kernel);
  return round_up(kernel.inputs, kPair) * round_up(kernel.outputs, kWide);
}

// Arrays: kernels.  The result: all of them packed, one after another.
inline void pack(Call& call) {
  Element* panels = call.result().panels();
  while (call.more()) {
    Kernel kernel = call.array().kernel();
    pack(call.pool, kernel, panels);
    panels += packed_size(kernel);
  }
}

// A normalisation, its vectors padded with zeros to whole chunks, and a packed kernel.
struct Stage {
  int64_t inputs, outputs;
  std::vector<float> gain, shift;
  const Element* panels;
};

// The stages of a block, one after another: gains and shifts, and packed kernels.
struct Packed {
  Stage take(int64_t size, int64_t inputs, int64_t outputs) {
    std::vector<float> gain(round_up(inputs, kChunk)), shift(gain.size());
    std::copy_n(vectors, inputs, gain.begin());
    std::copy_n(vectors + inputs, inputs, shift.begin());
    Stage stage{inputs, outputs, std::move(gain), std::move(shift), panels};
    vectors += 2 * inputs;
    panels += packed_size({nullptr, size, inputs, outputs});
    return stage;
  }
  const float* vectors;
  const Element* panels;
};

class BlockEvaluation {
 public:
  // made: channels that the first layer reads; width: of the bottlenecks, 0: there are none.
  BlockEvaluation(Pool& pool, const Map& x, const Map& features, Packed packed, bool transition,
                  int64_t made, int64_t growth, int64_t width)
      : pool_(pool),
        x_(x),
        features_(features),
        made_(made),
        growth_(growth),
        lines_(std::clamp<int64_t>(kPixels / features.width, 1, features.height)) {
    if (transition) transition_ = packed.take(1, x.channels, made);
    for (int64_t c = made; c < features.channels; c += growth)
      if (width > 0) {
        Stage first = packed.take(1, c, width);
        layers_.push_back({std::move(first), packed.take(3, width, growth)});
      } else {
        layers_.push_back({{}, packed.take(3, c, growth)});
      }
  }

  void run() {
    if (pool_.share() == 1 || features_.images >= 4 * pool_.num_threads())
      run_groups();
    else
      run_together();
  }

 private:
  static constexpr int64_t kPixels = 4 * kRows;    // of a 1x1 convolution at a time
  static constexpr int64_t kNear = 14;             // windows at a time, at least
  static constexpr int64_t kCached = 512 * 1024;   // bytes of features that stay in a core's cache

  struct Layer {
    bool bottleneck() const { return narrow.panels != nullptr; }

    Stage narrow, near;
  };

  // Every thread takes some images through the whole block, as many as its cache holds (at least one):
  // all layers read the features from there.
  void run_groups() {
    int64_t images = features_.images, size = 4 * features_.pixels() / images * features_.channels;
    int64_t groups = ceil_div(images, std::max<int64_t>(kCached / size, 1));
    int64_t parts = round_up(groups, pool_.num_threads());  // the same number for each thread
    parallel(pool_, parts, [&](int64_t part) {
      int64_t begin = part * images / parts, end = (part + 1) * images / parts;
      for (int64_t image = begin; image < end; ++image)
        for (int64_t row = 0; row < features_.height; row += lines_)
          enter(image, row, std::min(lines_, features_.height - row));
      for (size_t i = 0; i < layers_.size(); ++i)
        for (int64_t image = begin; image < end; ++image) run_image(i, image);
    });
  }

  // All threads work on all images, for few of them.
  void run_together() {
    int64_t height = features_.height, images = features_.images, threads = pool_.num_threads();
    int64_t lines = std::min(lines_, ceil_div(height * images, threads));
    int64_t strips = ceil_div(height, lines);
    parallel(pool_, images * strips, [&](int64_t part) {
      int64_t row = part % strips * lines;
      enter(part / strips, row, std::min(lines, height - row));
    });
    int64_t all = Strip::all_rows(features_);
    int64_t rows = std::min(Strip::rows_of(features_, kNear), ceil_div(all, threads));
    int64_t pixels = features_.pixels(), blocks = round_up(ceil_div(pixels, kPixels), threads);
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      int64_t width = layer.near.inputs;
      float* between = layer.bottleneck() ? scratch(kPartial, pixels * width) : nullptr;
      if (layer.bottleneck())
        parallel(pool_, blocks, [&](int64_t block) {
          int64_t first = block * pixels / blocks;
          narrow(layer, first, (block + 1) * pixels / blocks - first, between + first * width);
        });
      parallel(pool_, ceil_div(all, rows), [&](int64_t part) {
        Strip strip(features_, part * rows, std::min(rows, all - part * rows));
        auto line = [&](int64_t image, int64_t row) { return strip.line(image, row); };
        near(i, strip, between, line);
      });
    }
  }

  // A layer on one image.  The map between its convolutions stays in the cache, as a ring of lines.
  void run_image(size_t i, int64_t image) {
    const Layer& layer = layers_[i];
    int64_t height = features_.height, width = features_.width, down = ceil_div(height, 2), done = 0;
    int64_t rows = std::min(Strip::rows_of(features_, kNear), down);
    if (!layer.bottleneck()) {
      for (; done < down; done += rows) {
        Strip strip(features_, image * down + done, std::min(rows, down - done));
        near(i, strip, nullptr, [&](int64_t image, int64_t row) { return strip.line(image, row); });
      }
      return;
    }
    int64_t ring = round_up(2 * rows + 2 + lines_, lines_), size = width * layer.near.inputs;
    float* between = scratch(kOutput, ring * size);
    auto line = [=](int64_t, int64_t row) { return row % ring * width; };
    for (int64_t row = 0; row < height;) {
      int64_t lines = std::min(lines_, height - row);
      narrow(layer, (image * height + row) * width, lines * width, between + row % ring * size);
      row += lines;
      for (; done < down; done += rows) {
        int64_t end = std::min(done + rows, down);
        if (2 * end >= row && row < height) break;  // the last windows read one more line
        near(i, {features_, image * down + done, end - done}, between, line);
      }
    }
  }

  // What the first layer reads, for lines of an image: x, or the transition of x.
  void enter(int64_t image, int64_t row, int64_t lines) {
    float* to = features_.at(image, row, 0);
    int64_t width = features_.width, pixels = lines * width;
    if (transition_.panels == nullptr) {
      const float* from = x_.at(image, row, 0);
      for (int64_t i = 0; i < pixels; ++i)
        std::memcpy(to + i * features_.channels, from + i * made_, made_ * sizeof(float));
      return;
    }
    const Stage& stage = transition_;
    int64_t c = stage.inputs, below = x_.width * c;
    Element* u = scratch<Element>(kInput, round_up(c, kChunk) * pixels);
    for (int64_t q = 0; q < c; q += kChunk)
      for (int64_t i = 0; i < lines; ++i) {
        const float *from = x_.at(image, 2 * (row + i), 0) + q, *gain = &stage.gain[q],
                    *shift = &stage.shift[q];
        int64_t count = std::min<int64_t>(kChunk, c - q);
        pack_chunk<kChannels>(u + q * pixels + i * width * kChunk, from, width, 2 * c, count,
                          [&](Vec v, int64_t p, int64_t k) {
                            Vec g = load(gain + k), s = load(shift + k), sum = relu(v * g + s);
                            const float* corner = from + p * 2 * c + k;
                            for (int64_t at : {c, below, below + c})
                              sum += relu(load(corner + at, count - k) * g + s);
                            return sum * 0.25f;
                          });
      }
    Operand a{{u}, 1, c, pixels * kChunk};
    multiply(a, pixels, stage.panels, stage.outputs, [&](auto&& tile, int64_t first, int64_t j) {
      store_tile(tile, to + first * features_.channels + j, features_.channels, made_ - j);
    });
  }

  // The 1x1 convolution of pixels, normalised again for the 3x3.
  void narrow(const Layer& layer, int64_t first, int64_t pixels, float* to) {
    const Stage &stage = layer.narrow, &next = layer.near;
    int64_t c = stage.inputs, width = next.inputs;
    Element* u = scratch<Element>(kInput, round_up(c, kChunk) * pixels);
    const float* from = features_.data + first * features_.channels;
    for (int64_t q = 0; q < c; q += kChunk)
      pack_normalised<kChannels>(u + q * pixels, from, pixels, features_.channels, q, c,
                                 stage.gain.data(), stage.shift.data());
    Operand a{{u}, 1, c, pixels * kChunk};
    multiply(a, pixels, stage.panels, stage.outputs, [&](auto&& tile, int64_t first, int64_t j) {
      for (size_t n = 0; n < std::size(tile.v[0]); ++n) {
        Vec g = load(&next.gain[j] + n * kLanes), s = load(&next.shift[j] + n * kLanes);
        for (auto& row : tile.v) row[n] = relu(row[n] * g + s);
      }
      store_tile(tile, to + first * width + j, width, width - j);
    });
  }

  // The 3x3 convolution of layer i on a strip.  Rows of what it reads, the map between or without a
  // bottleneck the features, begin at pixel line(image, row).
  template <class F>
  void near(size_t i, const Strip& strip, const float* between, F&& line) {
    const Stage& stage = layers_[i].near;
    int64_t c = stage.inputs, windows = strip.windows(), offset = made_ + i * growth_;
    Element* points = scratch<Element>(kTransformed, kPoints * round_up(c, kChunk) * windows);
    if (between != nullptr)
      transform_windows(
          strip, c, line,
          [&](int64_t channel) {
            const float* from = between + channel;
            return [from, c, count = c - channel](int64_t pixel) {
              return load(from + pixel * c, count);
            };
          },
          points);
    else
      transform_windows(
          strip, c, line,
          [&](int64_t channel) {
            return normalised(features_, stage.gain.data(), stage.shift.data(), channel, c);
          },
          points);
    TransformedKernel weights(c, growth_, stage.panels);
    weights.multiply(points, windows, [&](int64_t first, const float* products) {
      for (int64_t j = first; j < std::min(first + kWide, growth_); j += kLanes)
        strip.transform_outputs(products + j - first, windows * kWide, [&](int64_t pixel, Vec y) {
          store(features_.data + pixel * features_.channels + offset + j, y, growth_ - j);
        });
    });
  }

  Pool& pool_;
  Map x_, features_;
  int64_t made_, growth_, lines_;
  Stage transition_{};
  std::vector<Layer> layers_;
};

// Arrays: x [B, H, W, C], then, of all stages (the transition, if there is one, and the layers), gains
// and shifts, and packed kernels.  The result: features.
inline void block_evaluate(Call& call) {
  Map x = call.array().map(), features = call.result().map();
  if (features.pixels() == 0) return;
  const float* vectors = call.array().data();
  Packed packed{vectors, call.array().panels()};
  auto number = [&](std::string_view name) { return call.number<int64_t>(name); };
  BlockEvaluation(call.pool, x, features, packed, number("transition") != 0, number("inputs"),
                  number("growth"), number("width"))
      .run();
}

}  // namespace densenet
