// The arguments of a function that XLA calls: arrays, results and numbers.

#pragma once

#include <exception>
#include <stdexcept>
#include <string_view>

#include "near.h"

namespace densenet {

namespace ffi = xla::ffi;

class Array {
 public:
  explicit Array(const ffi::Buffer<ffi::F32>& b) : data_(b.typed_data()), sizes_(b.dimensions()) {}

  float* data() const { return data_; }
  int64_t rank() const { return sizes_.size(); }
  int64_t size(int axis) const { return sizes_[axis]; }
  Map map() const { return {data_, sizes_[0], sizes_[1], sizes_[2], sizes_[3]}; }
  Kernel kernel() const { return {data_, sizes_[0], sizes_[2], sizes_[3]}; }

 private:
  float* data_;
  ffi::Span<const int64_t> sizes_;
};

// Arrays and results are taken one after another, in the order of the call.
class Call {
 public:
  Call(ffi::ThreadPool& threads, ffi::RemainingArgs arrays, ffi::RemainingRets results,
       ffi::Dictionary numbers)
      : pool(threads), arrays_(arrays), results_(results), numbers_(numbers) {}

  Array array() { return Array(take(arrays_.get<ffi::Buffer<ffi::F32>>(next_array_++))); }
  Array result() { return Array(*take(results_.get<ffi::Buffer<ffi::F32>>(next_result_++))); }
  Affine affine() {
    const float* gain = array().data();
    return {gain, array().data()};
  }
  bool more() const { return next_array_ < arrays_.size(); }
  template <class T>
  T number(std::string_view name) const {
    return take(numbers_.get<T>(name));
  }

  Pool pool;

 private:
  template <class T>
  static T take(ffi::ErrorOr<T> value) {
    if (value.has_error()) throw std::invalid_argument(value.error().message());
    return *value;
  }

  ffi::RemainingArgs arrays_;
  ffi::RemainingRets results_;
  ffi::Dictionary numbers_;
  size_t next_array_ = 0, next_result_ = 0;
};

template <void (*function)(Call&)>
ffi::Error run(ffi::ThreadPool threads, ffi::RemainingArgs arrays, ffi::RemainingRets results,
               ffi::Dictionary numbers) {
  try {
    Call call(threads, arrays, results, numbers);
    function(call);
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
  return ffi::Error::Success();
}

}  // namespace densenet

// Defines a function that XLA calls.
#define FUNCTION(name, function)                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, densenet::run<function>,     \
                                xla::ffi::Ffi::Bind()              \
                                    .Ctx<xla::ffi::ThreadPool>()   \
                                    .RemainingArgs()               \
                                    .RemainingRets()               \
                                    .Attrs())
