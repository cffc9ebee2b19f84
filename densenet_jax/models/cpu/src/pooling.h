// BN-ReLU-pooling: see pooling.py.

#pragma once

#include "call.h"

namespace densenet {

// Calls f(image, first channel, channels) for groups of at most kChunk channels of an image.
// Within a group every window belongs to one thread.
template <class F>
void channel_groups(Pool& pool, const Map& x, F&& f) {
  int64_t groups = ceil_div(x.channels, kChunk);
  parallel(pool, x.images * groups, [&](int64_t part) {
    int64_t first = part % groups * kChunk;
    f(part / groups, first, std::min<int64_t>(kChunk, x.channels - first));
  });
}

// The gradients of gain and shift: partial sums of each task, added at the end.
struct AffineSums {
  AffineSums(int64_t parts, int64_t channels)
      : parts(parts),
        channels(channels),
        size(round_up(channels, kChunk)),
        gains(scratch(kPartial, parts * 2 * size)) {
    std::fill_n(gains, parts * 2 * size, 0.0f);
  }

  // Adds the contributions of the gradient of x * gain + shift, from channel `c` on.
  void add(int64_t part, int64_t c, Vec gradient, Vec x) const {
    float *gain = gains + part * 2 * size + c, *shift = gain + size;
    store(gain, load(gain) + gradient * x);
    store(shift, load(shift) + gradient);
  }

  // Writes the next two results.
  void give(Call& call) const {
    for (int64_t which : {0, 1})
      add_parts(call.pool, gains + which * size, parts, 2 * size, 1, size, call.result().data(),
                channels);
  }
  int64_t parts, channels, size;
  float* gains;
};

// Arrays: x, gain, shift.  The result: means of relu(x * gain + shift) over 2x2 windows; an odd last
// row or column is left out.
inline void average_pool(Call& call) {
  Map x = call.array().map();
  Affine norm = call.affine();
  Map y = call.result().map();
  parallel(call.pool, y.images * y.height, [&](int64_t line) {
    int64_t image = line / y.height, row = line % y.height, below = x.width * x.channels;
    const float* from = x.data + (image * x.height + 2 * row) * below;
    float* to = y.data + line * y.width * y.channels;
    for (int64_t column = 0; column < y.width; ++column, from += 2 * x.channels, to += y.channels)
      for (int64_t c = 0; c < x.channels; c += kLanes) {
        int64_t count = x.channels - c;
        Vec g = load(norm.gain + c, count), s = load(norm.shift + c, count), sum = {};
        for (const float* p : {from, from + x.channels, from + below, from + below + x.channels})
          sum += relu(load(p + c, count) * g + s);
        store(to + c, sum * 0.25f, count);
      }
  });
}

// Arrays: x, gain, shift, the gradient of the result.  Results: the gradients of x, gain and shift.
inline void average_pool_backward(Call& call) {
  Map x = call.array().map();
  Affine norm = call.affine();
  Map dy = call.array().map(), dx = call.result().map();
  int64_t lines = x.images * x.height;
  int64_t parts = std::min(lines, std::max<int64_t>(8, 4 * call.pool.num_threads()));
  AffineSums sums(parts, x.channels);
  parallel(call.pool, parts, [&](int64_t part) {
    for (int64_t line = part * lines / parts; line < (part + 1) * lines / parts; ++line) {
      int64_t image = line / x.height, row = line % x.height / 2, at = line * x.width * x.channels;
      const float* d = dy.data + (image * dy.height + row) * dy.width * dy.channels;
      for (int64_t column = 0; column < x.width; ++column, at += x.channels) {
        bool inside = row < dy.height && column / 2 < dy.width;
        if (!inside) {
          std::fill_n(dx.data + at, x.channels, 0.0f);
          continue;
        }
        const float* its_d = d + column / 2 * dy.channels;
        for (int64_t c = 0; c < x.channels; c += kLanes) {
          int64_t count = x.channels - c;
          Vec g = load(norm.gain + c, count), value = load(x.data + at + c, count);
          Vec u = value * g + load(norm.shift + c, count);
          Vec du = u > 0 ? load(its_d + c, count) * 0.25f : Vec{};
          sums.add(part, c, du, value);
          store(dx.data + at + c, du * g, count);
        }
      }
    }
  });
  sums.give(call);
}

// The 3x3 windows of stride 2, padded by 1, of maps [B, H, W, C].
struct Window {
  Window(const Map& x, int64_t row, int64_t column)
      : top(std::max<int64_t>(2 * row - 1, 0)),
        bottom(std::min(2 * row + 2, x.height)),
        left(std::max<int64_t>(2 * column - 1, 0)),
        right(std::min(2 * column + 2, x.width)) {}

  template <class F>
  void each(F&& f) const {
    for (int64_t i = top; i < bottom; ++i)
      for (int64_t j = left; j < right; ++j) f(i, j);
  }
  int64_t top, bottom, left, right;
};

// Whether a value takes the place of the largest one so far: the first of equal values stays, and
// NaN wins, so that a broken network is noticed.
inline auto wins(Vec value, Vec largest) { return (value > largest) | (value != value); }

// Arrays: x, gain, shift.  The result: maxima of relu(x * gain + shift) over `Window`s; NaN where a
// window has NaN.
inline void max_pool(Call& call) {
  Map x = call.array().map();
  Affine norm = call.affine();
  Map y = call.result().map();
  parallel(call.pool, y.images * y.height, [&](int64_t line) {
    int64_t image = line / y.height, row = line % y.height;
    const float* from = x.at(image, 0, 0);
    float* to = y.at(image, row, 0);
    for (int64_t column = 0; column < y.width; ++column, to += y.channels) {
      Window window(x, row, column);
      for (int64_t c = 0; c < x.channels; c += kLanes) {
        int64_t count = x.channels - c;
        Vec g = load(norm.gain + c, count), s = load(norm.shift + c, count), largest = Vec{} - 1;
        window.each([&](int64_t i, int64_t j) {
          Vec u = relu(load(from + (i * x.width + j) * x.channels + c, count) * g + s);
          largest = wins(u, largest) ? u : largest;
        });
        store(to + c, largest, count);
      }
    }
  });
}

// Arrays: x, gain, shift, the gradient of the result.  Results: the gradients of x, gain and shift.
inline void max_pool_backward(Call& call) {
  Map x = call.array().map();
  Affine norm = call.affine();
  Map dy = call.array().map(), dx = call.result().map();
  AffineSums sums(x.images, x.channels);
  channel_groups(call.pool, x, [&](int64_t image, int64_t first, int64_t channels) {
    int64_t at = image * x.height * x.width * x.channels + first;
    const float *from = x.data + at, *d = dy.data + image * dy.height * dy.width * dy.channels + first;
    float* to = dx.data + at;
    auto place = [&](int64_t i, int64_t j) { return (i * x.width + j) * x.channels; };
    for (int64_t row = 0; row < dy.height; ++row) {
      // The rows that this row's windows are the first to reach.
      for (int64_t i = 2 * row; i < std::min(2 * row + 2, x.height); ++i)
        for (int64_t j = 0; j < x.width; ++j) std::fill_n(to + place(i, j), channels, 0.0f);
      for (int64_t column = 0; column < dy.width; ++column, d += dy.channels) {
        Window window(x, row, column);
        for (int64_t c = 0; c < channels; c += kLanes) {
          int64_t count = channels - c;
          Vec g = load(norm.gain + first + c, count), s = load(norm.shift + first + c, count);
          Vec u[9], largest = Vec{} - 1, its_x = {};
          int taps = 0;
          window.each([&](int64_t i, int64_t j) {
            Vec value = load(from + place(i, j) + c, count);
            Vec here = relu(value * g + s);
            its_x = wins(here, largest) ? value : its_x;
            largest = wins(here, largest) ? here : largest;
            u[taps++] = here;
          });
          Vec rest = largest > 0 ? load(d + c, count) : Vec{};
          sums.add(image, first + c, rest, its_x);
          rest *= g;
          taps = 0;
          window.each([&](int64_t i, int64_t j) {  // of equal values the first counts
            auto here = u[taps++] == largest;
            float* p = to + place(i, j) + c;
            store(p, load(p, count) + (here ? rest : Vec{}), count);
            rest = here ? Vec{} : rest;
          });
        }
      }
    }
  });
  sums.give(call);
}

}  // namespace densenet
