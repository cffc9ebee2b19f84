// Single stages, for blocks whose statistics are summed over several devices between stages.

#pragma once

#include "call.h"

namespace densenet {

// Arrays: x, gain, shift, kernel, pivot.  Results: y, its sums about the pivot.
inline void stage_forward_1x1(Call& call) {
  Map x = call.array().map();
  Affine norm = call.affine();
  Kernel kernel = call.array().kernel();
  const float* pivot = call.array().data();
  float* y = call.result().data();
  forward_1x1(call.pool, x, norm, kernel, pivot, y, call.result().data());
}

// Arrays: x, gain, shift, kernel, pivot, a buffer.  Results: the buffer, the sums of what was
// written, about the pivot.
inline void stage_forward_3x3(Call& call) {
  Map x = call.array().map();
  Affine norm = call.affine();
  Kernel kernel = call.array().kernel();
  const float* pivot = call.array().data();
  Map into = call.result().map();
  forward_3x3(call.pool, x, norm, TransformedKernel(call.pool, kernel), pivot, into,
              call.number<int64_t>("offset"), call.result().data());
}

// Arrays: x, gain, shift, kernel, d_out, out, constant, slope, and, of a 1x1 stage, a buffer to add
// to.  Results: the gradients of x (or the buffer), kernel, shift and gain.
template <bool kNear>
inline void stage_backward(Call& call) {
  Map x = call.array().map();
  Affine norm = call.affine();
  Kernel kernel = call.array().kernel();
  Map d_out = call.array().map();
  const float* out = call.array().data();
  const float* constant = call.array().data();
  Gradient dy{d_out.data, out, d_out.channels, call.number<int64_t>("offset"), constant,
              call.array().data()};
  float* d_x = call.result().data();
  float* d_kernel = call.result().data();
  float* d_shift = call.result().data();
  Results results{d_kernel, d_shift, call.result().data()};
  (kNear ? backward_3x3<false> : backward_1x1)(call.pool, x, norm, kernel, dy, d_x, results);
}

}  // namespace densenet
