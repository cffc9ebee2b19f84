// The arguments of a function that XLA calls: arrays, results and numbers.

#pragma once

#include <exception>
#include <stdexcept>
#include <string_view>

#include "near.h"

namespace densenet {

namespace ffi = xla::ffi;

// Of floats, or, in weights that are packed for bfloat16, of words.
class Array {
 public:
  explicit Array(const ffi::AnyBuffer& b)
      : type_(b.element_type()), data_(b.untyped_data()), sizes_(b.dimensions()) {
    if (type_ != ffi::F32 && type_ != ffi::U32)
      throw std::invalid_argument("an array of another type");
  }

  float* data() const {
    if (type_ != ffi::F32) throw std::invalid_argument("packed weights in the place of others");
    return static_cast<float*>(data_);
  }
  Element* panels() const {
    if (type_ != (kPair > 1 ? ffi::U32 : ffi::F32))
      throw std::invalid_argument("weights packed for another type");
    return static_cast<Element*>(data_);
  }
  int64_t rank() const { return sizes_.size(); }
  int64_t size(int axis) const { return sizes_[axis]; }
  Map map() const { return {data(), sizes_[0], sizes_[1], sizes_[2], sizes_[3]}; }
  Kernel kernel() const { return {data(), sizes_[0], sizes_[2], sizes_[3]}; }

 private:
  ffi::DataType type_;
  void* data_;
  ffi::Span<const int64_t> sizes_;
};

// Arrays and results are taken one after another, in the order of the call.
class Call {
 public:
  Call(ffi::ThreadPool& threads, ffi::RemainingArgs arrays, ffi::RemainingRets results,
       ffi::Dictionary numbers)
      : pool(threads), arrays_(arrays), results_(results), numbers_(numbers) {
    // All of them before any is touched: neighbours share pages.
    for (size_t i = 0; i < results.size(); ++i) {
      ffi::AnyBuffer result = *take(results.get<ffi::AnyBuffer>(i));
      use_huge_pages(result.untyped_data(), result.size_bytes());
    }
  }

  Array array() { return Array(take(arrays_.get<ffi::AnyBuffer>(next_array_++))); }
  Array result() { return Array(*take(results_.get<ffi::AnyBuffer>(next_result_++))); }
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
