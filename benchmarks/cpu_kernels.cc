// Runs recorded calls of the CPU kernels without JAX and compares their results: cpu_kernels.py.
//
// A recording is a sequence of calls; every number has 64 bits: the length of the function's name
// and the name; the number of attributes, and for each the length of its name, the name, whether it
// is a whole number, and its value; the number of arrays and the arrays; the same of the expected
// results.  An array is its rank, its sizes and its float32 values.  BlockEvaluate has kernels in the
// place of packed ones: in which order these are depends on the processor, so they are packed here.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

#define DECLARE(name) extern "C" XLA_FFI_Error* name(XLA_FFI_CallFrame*);
#define ENTRY(name) {#name, name},
#define ALL(F)                                                                                \
  F(Forward1x1) F(Forward3x3) F(Backward1x1) F(Backward3x3) F(BlockForward) F(BlockBackward)  \
  F(Pack) F(BlockEvaluate) F(Convolve) F(ConvolveBackward) F(MaxPool) F(MaxPoolBackward)      \
  F(AveragePool) F(AveragePoolBackward)
ALL(DECLARE)
const std::map<std::string, XLA_FFI_Handler*> kFunctions = {ALL(ENTRY)};

// What XLA gives to a kernel: errors, and a pool of threads.
struct XLA_FFI_Error {
  std::string message;
};

struct Pool {
  int64_t size;
  std::vector<std::thread> threads;

  void join() {
    for (auto& thread : threads) thread.join();
    threads.clear();
  }
};

Pool pool;

XLA_FFI_Error* create_error(XLA_FFI_Error_Create_Args* args) {
  return new XLA_FFI_Error{args->message};
}

XLA_FFI_Error* schedule(XLA_FFI_ThreadPool_Schedule_Args* args) {
  pool.threads.emplace_back(args->task, args->data);
  return nullptr;
}

XLA_FFI_Error* count_threads(XLA_FFI_ThreadPool_NumThreads_Args* args) {
  *args->num_threads = pool.size;
  return nullptr;
}

extern "C" int64_t PanelWidth();
#if defined(BFLOAT16)
constexpr XLA_FFI_DataType kPacked = XLA_FFI_DataType_U32;
constexpr int64_t kPair = 2;
#else
constexpr XLA_FFI_DataType kPacked = XLA_FFI_DataType_F32;
constexpr int64_t kPair = 1;
#endif

struct Array {
  std::vector<int64_t> sizes;
  std::vector<float> values;
  XLA_FFI_DataType type = XLA_FFI_DataType_F32;
};

struct Number {
  std::string name;
  XLA_FFI_Scalar scalar;
  int64_t bits;
};

struct Recorded {
  std::string function;
  std::vector<Number> numbers;
  std::vector<Array> arrays, results;
};

int64_t read_number(std::istream& in) {
  int64_t value = 0;
  in.read(reinterpret_cast<char*>(&value), 8);
  return value;
}

std::string read_text(std::istream& in) {
  std::string text(read_number(in), ' ');
  in.read(text.data(), text.size());
  return text;
}

std::vector<Array> read_arrays(std::istream& in) {
  std::vector<Array> arrays(read_number(in));
  for (Array& array : arrays) {
    array.sizes.resize(read_number(in));
    int64_t count = 1;
    for (int64_t& size : array.sizes) count *= size = read_number(in);
    array.values.resize(count);
    in.read(reinterpret_cast<char*>(array.values.data()), 4 * count);
  }
  return arrays;
}

Recorded read_call(std::istream& in) {
  Recorded call{read_text(in), {}, {}, {}};
  call.numbers.resize(read_number(in));
  for (Number& number : call.numbers) {
    number.name = read_text(in);
    number.scalar.dtype = read_number(in) ? XLA_FFI_DataType_S64 : XLA_FFI_DataType_F64;
    number.bits = read_number(in);
  }
  call.arrays = read_arrays(in);
  call.results = read_arrays(in);
  return call;
}

std::vector<XLA_FFI_Buffer> buffers(std::vector<Array>& arrays) {
  std::vector<XLA_FFI_Buffer> made;
  for (Array& array : arrays)
    made.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, array.type, array.values.data(),
                    static_cast<int64_t>(array.sizes.size()), array.sizes.data()});
  return made;
}

template <class T>
std::vector<void*> pointers(std::vector<T>& values) {
  std::vector<void*> made;
  for (T& value : values) made.push_back(&value);
  return made;
}

// Calls a function as XLA does and returns its error, or "".
std::string run(Recorded& call, std::vector<Array>& results) {
  XLA_FFI_Api api{};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR,
                     XLA_FFI_API_MINOR};
  api.XLA_FFI_Error_Create = create_error;
  api.XLA_FFI_ThreadPool_Schedule = schedule;
  api.XLA_FFI_ThreadPool_NumThreads = count_threads;
  auto in = buffers(call.arrays), out = buffers(results);
  auto in_at = pointers(in), out_at = pointers(out);
  std::vector<XLA_FFI_ArgType> in_types(in.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> out_types(out.size(), XLA_FFI_RetType_BUFFER);
  std::vector<XLA_FFI_AttrType> types(call.numbers.size(), XLA_FFI_AttrType_SCALAR);
  std::vector<XLA_FFI_ByteSpan> names;
  std::vector<void*> values;
  for (Number& number : call.numbers) {
    names.push_back({number.name.data(), number.name.size()});
    number.scalar.value = &number.bits;
    values.push_back(&number.scalar);
  }
  std::vector<XLA_FFI_ByteSpan*> names_at;
  for (auto& name : names) names_at.push_back(&name);
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &api;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(in.size()),
                in_types.data(), in_at.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<int64_t>(out.size()),
                out_types.data(), out_at.data()};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, static_cast<int64_t>(names.size()),
                 types.data(), names_at.data(), values.data()};
  XLA_FFI_Error* error = kFunctions.at(call.function)(&frame);
  pool.join();
  std::string message = error ? error->message : "";
  delete error;
  return message;
}

// Packs the kernels of a BlockEvaluate, its arrays from the third on; returns the error, or "".
std::string pack_kernels(Recorded& call) {
  Recorded pack{"Pack", {}, {call.arrays.begin() + 2, call.arrays.end()}, {}};
  int64_t rows = 0, width = PanelWidth();
  for (const Array& kernel : pack.arrays) {
    int64_t size = kernel.sizes[0], inputs = kernel.sizes[2], outputs = kernel.sizes[3];
    int64_t words = (inputs + kPair - 1) / kPair, panels = (outputs + width - 1) / width;
    rows += panels * words * (size == 3 ? 16 : 1);
  }
  std::vector<Array> panels = {{{rows, width}, std::vector<float>(rows * width), kPacked}};
  std::string error = run(pack, panels);
  call.arrays.resize(2);
  call.arrays.push_back(std::move(panels[0]));
  return error;
}

// The largest difference of two results, relative to the largest expected value.
double difference(const std::vector<float>& actual, const std::vector<float>& expected,
                  double largest) {
  double apart = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs<double>(expected[i]));
    double here = std::abs<double>(static_cast<double>(actual[i]) - expected[i]);
    apart = here <= apart ? apart : here;  // NaN is the largest
  }
  return apart / largest;
}

// A convolution that needs more memory than there is, in every thread: an error, not the end.
bool survives_lack_of_memory() {
  std::vector<float> none(1);
  Recorded call{"Convolve", {{"stride", {XLA_FFI_DataType_S64, nullptr}, 1}}, {}, {}};
  int64_t wide = int64_t{1} << 44;
  call.arrays = {{{4, 1, wide, 3}, none}, {{3, 3, 3, 8}, {}}, {{8}, {}}};
  call.arrays[1].values.resize(216);
  call.arrays[2].values.resize(8);
  std::vector<Array> results = {{{4, 1, wide, 8}, none}, {{2, 8}, std::vector<float>(16)}};
  std::string error = run(call, results);
  std::cout << "too large: " << (error.empty() ? "NO ERROR" : error) << "\n";
  return !error.empty();
}

int main(int count, char** arguments) {
  if (count != 5) {
    std::cerr << "usage: cpu_kernels RECORDING THREADS SECONDS BOUND\n";
    return 2;
  }
  std::ifstream in(arguments[1], std::ios::binary);
  pool.size = std::atoi(arguments[2]);
  double seconds = std::atof(arguments[3]), bound = std::atof(arguments[4]);
  bool good = survives_lack_of_memory();
  while (in.peek() != EOF) {
    Recorded call = read_call(in);
    auto results = call.results;
    for (Array& result : results) std::fill(result.values.begin(), result.values.end(), 0.0f);
    // Those that XLA gives the memory of an argument: they have its values.
    for (Number& number : call.numbers)
      if (number.name.starts_with("alias"))
        results[number.bits].values = call.arrays[std::stoi(number.name.substr(5))].values;
    std::erase_if(call.numbers, [](const Number& n) { return n.name.starts_with("alias"); });
    std::string error = call.function == "BlockEvaluate" ? pack_kernels(call) : "";
    if (error.empty()) error = run(call, results);
    double apart = 0, best = 1e9, spent = 0;
    for (size_t i = 0; i < results.size(); ++i) {
      // The gradients of a pooling's gain can cancel; their terms are as large as those of its shift.
      bool pooled = call.function.ends_with("PoolBackward") && i > 0;
      double largest = 1e-30;
      for (float v : call.results[pooled ? 2 : i].values)
        largest = std::max<double>(largest, std::abs(v));
      double here = difference(results[i].values, call.results[i].values, largest);
      apart = here <= apart ? apart : here;
    }
    while (spent < seconds) {
      std::clock_t begin = std::clock();
      run(call, results);
      double took = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
      best = std::min(best, took), spent += took;
    }
    bool close = error.empty() && apart < bound;
    good &= close;
    std::printf("%-5s %-20s %s", close ? "ok" : "WRONG", call.function.c_str(), error.c_str());
    for (int64_t size : call.arrays[0].sizes) std::printf(" %lld", static_cast<long long>(size));
    std::printf("  differs by %.1e", apart);
    if (seconds > 0) std::printf("  %.3f ms", 1e3 * best);
    std::printf("\n");
  }
  std::cout << (good ? "all right\n" : "FAILED\n");
  return good ? 0 : 1;
}
