// A dense block in training: the algorithm of gradient.py, for all layers in one call.
//
// XLA would compile the vector arithmetic between two kernels again for each layer, since each layer
// has another number of channels.  Here it is a few loops.

#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "call.h"

namespace densenet {

struct Moments {
  float *mean, *var;

  Moments from(int64_t channel) const { return {mean + channel, var + channel}; }
};

// Batch normalisation's parameters.
struct Norm {
  const float *scale, *bias;
};

struct Pair {
  Norm norm;
  Kernel kernel;
};

inline Moments take_moments(Call& call) {
  float* mean = call.array().data();
  return {mean, call.array().data()};
}

inline Moments take_moments_results(Call& call) {
  float* mean = call.result().data();
  return {mean, call.result().data()};
}

inline Pair take_pair(Call& call) {
  const float* scale = call.array().data();
  const float* bias = call.array().data();
  return {{scale, bias}, call.array().kernel()};
}

// Gain and shift of a normalisation with a batch's moments: `statistics.affine`.
class BatchAffine {
 public:
  BatchAffine(const Pair& pair, const Moments& batch, double epsilon)
      : gain_(pair.kernel.inputs), shift_(gain_.size()) {
    for (size_t i = 0; i < gain_.size(); ++i) {
      gain_[i] = pair.norm.scale[i] / std::sqrt(batch.var[i] + epsilon);
      shift_[i] = pair.norm.bias[i] - batch.mean[i] * gain_[i];
    }
  }
  operator Affine() const { return {gain_.data(), shift_.data()}; }

 private:
  std::vector<float> gain_, shift_;
};

// The expected mean of each output of a stage, from the moments of its input:
// `statistics.expected_output`.
inline std::vector<float> expected_output(const Kernel& kernel, int64_t taps, const Affine& norm,
                                          const Moments& batch) {
  std::vector<double> inputs(kernel.inputs), outputs(kernel.outputs);
  for (int64_t i = 0; i < kernel.inputs; ++i) {
    double mean = static_cast<double>(batch.mean[i]) * norm.gain[i] + norm.shift[i];
    double reach = std::sqrt(3.0 * batch.var[i]) * std::abs(norm.gain[i]);
    for (auto [weight, at] : {std::pair{4.0, mean}, {1.0, mean + reach}, {1.0, mean - reach}})
      inputs[i] += weight / 6 * std::max(at, 0.0);
  }
  for (int64_t k = 0; k < taps * kernel.inputs; ++k)
    for (int64_t j = 0; j < kernel.outputs; ++j)
      outputs[j] += inputs[k % kernel.inputs] * kernel.data[k * kernel.outputs + j];
  return {outputs.begin(), outputs.end()};
}

// The moments of sums [2, c] about a pivot, of n values a channel: `statistics.moments_of_sums`.
inline void moments_of_sums(const float* sums, const float* pivot, int64_t c, double n,
                            const Moments& moments) {
  for (int64_t i = 0; i < c; ++i) {
    double mean = sums[i] / n, var = sums[c + i] / n - mean * mean;
    moments.mean[i] = pivot[i] + mean;
    moments.var[i] = var < 0 ? 0 : var;  // by rounding; a number that is none stays so
  }
}

// The first channels of a map, copied into a buffer that has room for more.
inline void copy_channels(Pool& pool, const Map& from, const Map& to) {
  int64_t lines = from.images * from.height;
  parallel(pool, lines, [&](int64_t line) {
    for (int64_t i = line * from.width; i < (line + 1) * from.width; ++i)
      std::memcpy(to.data + i * to.channels, from.data + i * from.channels, from.channels * 4);
  });
}

// Arrays: x [B, H, W, C], its mean and variance, then each layer's scale, bias and kernel, twice if
// it has a bottleneck.  Results: features [B, H, W, C + growth rate * layers], their mean and
// variance, then for each bottleneck the map after it, [B, H, W, width], with its mean and variance.
inline void block_forward(Call& call) {
  Map x = call.array().map();
  Moments before = take_moments(call);
  Map features = call.result().map();
  Moments all = take_moments_results(call);
  double epsilon = call.number<double>("epsilon"), n = x.pixels();
  std::copy_n(before.mean, x.channels, all.mean);
  std::copy_n(before.var, x.channels, all.var);
  copy_channels(call.pool, x, features);
  for (int64_t c = x.channels; call.more();) {
    Pair pair = take_pair(call);
    Map source = features;
    Moments moments = all;
    std::vector<float> sums(2 * pair.kernel.outputs);
    if (pair.kernel.size == 1) {
      source = call.result().map();
      moments = take_moments_results(call);
      BatchAffine norm(pair, all, epsilon);
      std::vector<float> pivot = expected_output(pair.kernel, 1, norm, all);
      forward_1x1(call.pool, features, norm, pair.kernel, pivot.data(), source.data, sums.data());
      moments_of_sums(sums.data(), pivot.data(), source.channels, n, moments);
      pair = take_pair(call);
      sums.resize(2 * pair.kernel.outputs);
    }
    BatchAffine norm(pair, moments, epsilon);
    std::vector<float> pivot = expected_output(pair.kernel, 9, norm, moments);
    forward_3x3(call.pool, source, norm, TransformedKernel(call.pool, pair.kernel), pivot.data(),
                features, c, sums.data());
    moments_of_sums(sums.data(), pivot.data(), pair.kernel.outputs, n, all.from(c));
    c += pair.kernel.outputs;
  }
}

// The gradient that comes through a map's moments, constant + slope * x: `moments_gradient`.
struct Correction {
  Correction(const Moments& batch, const Moments& d, int64_t c, double n) : constant(c), slope(c) {
    for (int64_t i = 0; i < c; ++i) {
      double s = 2 * d.var[i] / n;
      slope[i] = s;
      constant[i] = d.mean[i] / n - s * batch.mean[i];
    }
  }
  std::vector<float> constant, slope;
};

// The gradients of scale, bias and moments, from those of gain and shift: `affine_gradients`.
struct NormResults {
  float *scale, *bias;  // first the gradients of gain and shift, which become these

  // Adds to d_batch.
  void finish(const Pair& pair, const Moments& batch, double epsilon, const Moments& d_batch) {
    for (int64_t i = 0; i < pair.kernel.inputs; ++i) {
      double r = 1 / std::sqrt(batch.var[i] + epsilon);
      double d_gain = scale[i] - static_cast<double>(batch.mean[i]) * bias[i];
      d_batch.mean[i] -= pair.norm.scale[i] * r * bias[i];
      d_batch.var[i] -= 0.5 * pair.norm.scale[i] * r * r * r * d_gain;
      scale[i] = d_gain * r;
    }
  }
};

struct PairResults {
  NormResults norm;
  float* kernel;

  operator Results() const { return {kernel, norm.bias, norm.scale}; }
};

inline PairResults take_results(Call& call) {
  float* scale = call.result().data();
  float* bias = call.result().data();
  return {{scale, bias}, call.result().data()};
}

// Arrays: the gradients of features and of their mean and variance; features, mean and variance;
// then for each layer, from the last to the first, its parameters, and, after a bottleneck, the map
// between its convolutions with its mean and variance.  Results: the gradients of features (in
// place; at the end their first channels are the gradient of the block's input), mean and variance;
// memory for the gradient of the map between; then the gradients of each layer's parameters, in the
// same order.
inline void block_backward(Call& call) {
  const float* d_features_before = call.array().data();
  Moments d_before = take_moments(call);
  Map features = call.array().map();
  Moments all = take_moments(call);
  float* d_features = call.result().data();
  Moments d_all = take_moments_results(call);
  float* d_between = call.result().data();
  double epsilon = call.number<double>("epsilon"), n = features.pixels();
  if (d_features != d_features_before)
    std::copy_n(d_features_before, features.pixels() * features.channels, d_features);
  std::copy_n(d_before.mean, features.channels, d_all.mean);
  std::copy_n(d_before.var, features.channels, d_all.var);
  for (int64_t c = features.channels; call.more();) {
    Pair first = take_pair(call);
    PairResults d_first = take_results(call);
    bool bottleneck = first.kernel.size == 1;
    Pair last = bottleneck ? take_pair(call) : first;
    int64_t growth = last.kernel.outputs;
    c -= growth;
    // All readers of these channels have been visited: the gradient of their moments is complete.
    Correction own(all.from(c), d_all.from(c), growth, n);
    Gradient dy{d_features, features.data, features.channels, c, own.constant.data(),
                own.slope.data()};
    BatchAffine norm1(first, all, epsilon);
    if (bottleneck) {
      Map between = call.array().map();
      Moments inner = take_moments(call);
      PairResults d_last = take_results(call);
      int64_t width = between.channels;
      std::vector<float> zeros(2 * width);
      Moments d_inner{zeros.data(), zeros.data() + width};
      backward_3x3<false>(call.pool, between, BatchAffine(last, inner, epsilon), last.kernel, dy,
                          d_between, d_last);
      d_last.norm.finish(last, inner, epsilon, d_inner);
      Correction middle(inner, d_inner, width, n);
      backward_1x1(call.pool, features, norm1, first.kernel,
                   {d_between, between.data, width, 0, middle.constant.data(), middle.slope.data()},
                   d_features, d_first);
    } else {
      backward_3x3<true>(call.pool, features, norm1, first.kernel, dy, d_features, d_first);
    }
    d_first.norm.finish(first, all, epsilon, d_all);
  }
}

}  // namespace densenet
