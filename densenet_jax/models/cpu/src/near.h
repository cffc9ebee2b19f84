// BN-ReLU-3x3 convolution, and its transpose, by the products of winograd.h.

#pragma once

#include "backward.h"
#include "winograd.h"

namespace densenet {

// Windows that are transformed at a time, at least: for them the transformed kernel and the sums of its
// gradient are read once, and what they become stays in the cache.
constexpr int64_t kWindows = 28;

// relu(x * gain + shift) of a map's vector of channels from `channel` on, by pixel.
inline auto normalised(const Map& x, const float* gain, const float* shift, int64_t channel,
                       int64_t channels) {
  const float* from = x.data + channel;
  Vec g = load(gain + channel), s = load(shift + channel);
  int64_t stride = x.channels, count = channels - channel;
  return [=](int64_t pixel) { return relu(load(from + pixel * stride, count) * g + s); };
}

// The completed gradient of a vector of channels, by pixel.
inline auto completed(const Gradient& dy, const Vectors& v, int64_t channel, int64_t channels) {
  const float *d_out = dy.d_out + dy.offset + channel, *out = dy.out + dy.offset + channel;
  Vec constant = load(v.constant + channel), slope = load(v.slope + channel);
  int64_t stride = dy.channels, count = channels - channel;
  return [=](int64_t pixel) {
    int64_t at = pixel * stride;
    return load(d_out + at, count) + constant + slope * load(out + at, count);
  };
}

// All channels of a strip's windows, [kPoints][channels / kChunk][windows][kChunk]; line and
// value(channel) as Strip::transform_windows wants them.  kPaired: `paired` has them, too, in words
// that hold two windows.
template <bool kPaired = false, class L, class F>
inline void transform_windows(const Strip& strip, int64_t channels, L&& line, F&& value,
                              Element* out, Element* paired = nullptr) {
  int64_t windows = strip.windows(), even = round_up(windows, kPair);
  int64_t whole = round_up(channels, kChunk);
  for (int64_t c = 0; c < channels; c += kLanes) {
    Element* to = out + c / kChunk * kChunk * windows + c % kChunk;
    Element* to_paired =
        kPaired ? paired + c / kChunk * kChunk * even + c % kChunk * kPair : nullptr;
    strip.transform_windows<kPaired ? kPair : 1>(
        line, value(c), [=, size = whole * windows](int point, int64_t window, const auto& v) {
          store_channels(to + point * size, window, v);
          if constexpr (kPaired) store_pixels(to_paired + point * whole * even, window, v);
        });
  }
}

// Divides all rows of windows into strips, enough of them for the threads.
inline int64_t rows_of_strips(Pool& pool, const Map& map) {
  int64_t fair = ceil_div(Strip::all_rows(map), 4 * pool.num_threads());
  return std::min(Strip::rows_of(map, kWindows), fair);
}

// Writes y at a channel of a map, and its sums [2, D] about a pivot [D].
inline void forward_3x3(Pool& pool, const Map& x, const Affine& norm,
                        const TransformedKernel& weights, const float* pivot, const Map& into,
                        int64_t offset, float* sums) {
  int64_t c = weights.channels(), d = weights.columns(), stride = round_up(d, kWide);
  const float *gain = padded(kGain, norm.gain, c), *shift = padded(kShift, norm.shift, c);
  pivot = padded(kSlope, pivot, d);
  int64_t all = Strip::all_rows(x), rows = rows_of_strips(pool, x), parts = ceil_div(all, rows);
  float* partial = scratch(kPartial, parts * 2 * stride);
  parallel(pool, parts, [&](int64_t part) {
    Strip strip(x, part * rows, std::min(rows, all - part * rows));
    into.fetch(strip.first_pixel(), 4 * strip.windows(), offset, d);  // in which it will write
    Element* points =
        scratch<Element>(kTransformed, kPoints * round_up(c, kChunk) * strip.windows());
    transform_windows(
        strip, c, [&](int64_t image, int64_t row) { return strip.line(image, row); },
        [&](int64_t channel) { return normalised(x, gain, shift, channel, c); }, points);
    weights.multiply(points, strip.windows(), [&](int64_t first, const float* products) {
      for (int64_t j = first; j < std::min(first + kWide, d); j += kLanes) {
        Vec sum = {}, square = {}, about = load(pivot + j);
        strip.transform_outputs(
            products + j - first, strip.windows() * kWide,
            [&](int64_t pixel, Vec y) {
              store(into.data + pixel * into.channels + offset + j, y, d - j);
              sum += y - about;
              square += (y - about) * (y - about);
            });
        store(partial + part * 2 * stride + j, sum);
        store(partial + (part * 2 + 1) * stride + j, square);
      }
    });
  });
  add_parts(pool, partial, parts, 2 * stride, 2, stride, sums, d);
}

// The gradient of a kernel from its points' gradients [kPoints][C][D], of windows turned round.
inline void transform_kernel_gradient(Pool& pool, const float* points, int64_t size, float* out) {
  parallel(pool, ceil_div(size, 4096), [&](int64_t part) {
    for (int64_t at = part * 4096; at < std::min(size, (part + 1) * 4096); at += kLanes) {
      Vec half[3][4];
      for (int k = 0; k < 4; ++k) {
        Vec v[4], g[3];
        for (int i = 0; i < 4; ++i) v[i] = load(points + (4 * i + k) * size + at, size - at);
        kernel_gradient_transform(v, g);
        for (int i = 0; i < 3; ++i) half[i][k] = g[i];
      }
      for (int i = 0; i < 3; ++i) {
        Vec g[3];
        kernel_gradient_transform(half[i], g);
        for (int j = 0; j < 3; ++j) store(out + (8 - 3 * i - j) * size + at, g[j], size - at);
      }
    }
  });
}

// Writes d_x [B, H, W, kernel.inputs]; kAdd: adds to d_x [B, H, W, all of x's channels].
template <bool kAdd>
inline void backward_3x3(Pool& pool, const Map& x, const Affine& norm, const Kernel& kernel,
                         const Gradient& dy, float* d_x, const Results& results) {
  int64_t c = kernel.inputs, d = kernel.outputs, stride = round_up(d, kWide);
  Map to = x.with(d_x, kAdd ? x.channels : c);
  Kernel turned = turned_round(pool, kernel, scratch(kProducts, 9 * c * d));
  TransformedKernel weights(pool, turned);
  Vectors v = padded_vectors(norm, dy, kernel);
  Sums sums(kPoints * c, stride, c);
  int64_t all = Strip::all_rows(x), rows = rows_of_strips(pool, x), strips = ceil_div(all, rows);
  int64_t parts = std::min(strips, pool.num_threads());
  float* partial = scratch(kPartial, parts * sums.size);
  // Fetches a share of what a strip reads and writes, while the one before it is computed.
  auto fetch_share = [&](int64_t next, int64_t point) {
    Strip strip(x, next * rows, rows);
    int64_t count = ceil_div(4 * strip.windows(), kPoints);
    int64_t pixel = strip.first_pixel() + point * count, below = pixel + x.width;
    for (const float* of : {dy.d_out, dy.out})
      x.with(of, dy.channels).fetch(below, count, dy.offset, d);
    x.fetch(pixel, count, 0, c);
    to.fetch(pixel, count, 0, c);
  };
  parallel(pool, parts, [&](int64_t part) {
    int64_t most = round_up(rows * ceil_div(x.width, 2), kPair) * kPoints;
    Element* d_points = scratch<Element>(kOutput, most * round_up(d, kChunk));
    Element* paired =
        kPair > 1 ? scratch<Element>(kPaired, most * round_up(d, kChunk)) : d_points;
    Element* points = scratch<Element>(kInput, most * kChunk);
    float* own = partial + part * sums.size;
    std::fill(own, own + sums.size, 0.0f);
    for (int64_t i = part * strips / parts; i < (part + 1) * strips / parts; ++i) {
      Strip strip(x, i * rows, std::min(rows, all - i * rows));
      int64_t windows = strip.windows(), chunk = round_up(windows, kPair) * kChunk;
      transform_windows<(kPair > 1)>(
          strip, d, [&](int64_t image, int64_t row) { return strip.line(image, row); },
          [&](int64_t channel) { return completed(dy, v, channel, d); }, d_points, paired);
      for (int64_t q = 0; q < c; q += kChunk) {
        int64_t count = std::min<int64_t>(kChunk, c - q);
        for (int64_t k = 0; k < count; k += kLanes)
          strip.transform_tiles<kPair>(
              normalised(x, v.gain, v.shift, q + k, c),
              [=](int point, int64_t window, const auto& v) {
                store_pixels(points + point * chunk + k * kPair, window, v);
              });
        for (int64_t point = 0; point < kPoints; ++point) {
          if (q == 0) fetch_share(i + 1, point);
          add_kernel_gradient(points + point * chunk, 0, count,
                              paired + point * ceil_div(d, kChunk) * chunk, 0, chunk, d, 1,
                              windows, own + (point * c + q) * stride, stride);
        }
      }
      weights.multiply(d_points, windows, [&](int64_t first, const float* products) {
        for (int64_t j = first; j < std::min(first + kWide, c); j += kLanes) {
          Vec g = load(v.gain + j), s = load(v.shift + j), sum = {}, product = {};
          strip.transform_outputs(
              products + j - first, windows * kWide,
              [&](int64_t pixel, Vec tile) {
                Vec value = load(x.data + pixel * x.channels + j, c - j);
                Vec du = value * g + s > 0 ? tile : Vec{};
                sum += du;
                product += du * value;
                float* at = to.data + pixel * to.channels + j;
                store(at, kAdd ? load(at, c - j) + du * g : du * g, c - j);
              });
          float *to_shift = own + sums.kernel + j, *to_gain = to_shift + sums.vector;
          store(to_shift, load(to_shift) + sum);
          store(to_gain, load(to_gain) + product);
        }
      });
    }
  });
  float* points = scratch(kInput, kPoints * c * d);
  add_parts(pool, partial, parts, sums.size, kPoints * c, stride, points, d);
  transform_kernel_gradient(pool, points, c * d, results.kernel);
  sums.give(pool, partial, parts, c, results);
}

}  // namespace densenet
