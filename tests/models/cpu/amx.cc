// Products by AMX of small whole numbers, which are exact, with NaN in all that must not be read.

#include <cstdio>
#include <limits>
#include <vector>

#include "backward.h"

using namespace densenet;

namespace {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

Element element(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return {static_cast<uint16_t>(bits >> 16)};
}

// A number from -4 to 4.
float number(int64_t i, int64_t j) {
  uint64_t hash = (i * 1000003 + j) * 0x9e3779b97f4a7c15u;
  return static_cast<float>(static_cast<int64_t>(hash >> 40) % 9 - 4);
}

// How many sums, rows `stride` apart, are not `start` and the sum over k of term(row, column, k).
template <class F>
int64_t count_wrong(const std::vector<float>& sums, int64_t stride, int64_t rows, int64_t columns,
                    float start, int64_t depth, F&& term) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      float sum = start;
      for (int64_t k = 0; k < depth; ++k) sum += term(i, j, k);
      wrong += sums[i * stride + j] != sum;
    }
  return wrong;
}

// The number of wrong products of `count` pixels with all columns.
int64_t check_product(int64_t count, int64_t columns, int64_t channels, int lines) {
  int64_t chunks = ceil_div(channels, kChunk), even = round_up(channels, kPair);
  std::vector<Element> x(lines * chunks * count * kChunk, element(kNone));
  Operand a{{}, lines, channels, count * kChunk};
  std::vector<Element> panels(a.depth() * round_up(columns, kWide), element(0));
  for (int i = 0; i < lines; ++i) {
    a.line[i] = &x[i * chunks * count * kChunk];
    for (int64_t c = 0; c < even; ++c) {
      for (int64_t p = 0; p < count; ++p)
        x[((i * chunks + c / kChunk) * count + p) * kChunk + c % kChunk] =
            element(c < channels ? number(p, i * channels + c) : 0);
      for (int64_t k = 0; k < columns && c < channels; ++k)
        panels[k / kWide * a.depth() * kWide + (i * even + c) / kPair * kPair * kWide +
               k % kWide * kPair + c % kPair] = element(number(i * channels + c, k));
    }
  }
  std::vector<float> y(count * columns, kNone);
  multiply(a, count, panels.data(), columns, [&](const auto& tile, int64_t p, int64_t k) {
    store_tile(tile, &y[p * columns + k], columns, columns - k);
  });
  return count_wrong(y, columns, count, columns, 0, lines * channels, [](auto p, auto k, auto c) {
    return number(p, c) * number(c, k);
  });
}

// The number of wrong sums over pixels of products of channels and columns.
int64_t check_outer_product(int64_t channels, int64_t columns, int64_t pixels, int64_t lines) {
  int64_t even = round_up(pixels, kPair), line = even * kChunk;
  std::vector<Element> x(lines * line, element(kNone)), y(x);
  auto at = [=](int64_t i, int64_t p, int64_t c) {
    return i * line + p / kPair * kPair * kChunk + c * kPair + p % kPair;
  };
  for (int64_t i = 0; i < lines; ++i)
    for (int64_t p = 0; p < even; ++p) {
      for (int64_t c = 0; c < channels; ++c)
        x[at(i, p, c)] = element(p < pixels ? number(i * pixels + p, c) : 0);
      for (int64_t k = 0; k < round_up(columns, kLanes); ++k)
        y[at(i, p, k)] = element(p < pixels && k < columns ? number(k, i * pixels + p) : 0);
    }
  std::vector<float> sums(channels * kWide, 1);
  add_kernel_gradient(x.data(), line, channels, y.data(), line, line, columns, lines, pixels,
                      sums.data(), kWide);
  return count_wrong(sums, kWide, channels, columns, 1, lines * pixels, [](auto c, auto k, auto p) {
    return number(p, c) * number(k, p);
  });
}

}  // namespace

int main() {
  if (!has_amx) return 2;
  int64_t wrong = 0;
  for (int64_t count : {1, 2, 15, 16, 17, 40})
    for (int64_t columns : {3, 16, 17, 32, 45})
      for (int64_t channels : {1, 2, 31, 32, 33, 64, 70, 160})
        for (int lines : {1, 3}) wrong += check_product(count, columns, channels, lines);
  for (int64_t channels : {1, 2, 15, 16, 17, 64})
    for (int64_t columns : {3, 16, 17, 32})
      for (int64_t pixels : {1, 2, 31, 32, 33, 128})
        for (int64_t lines : {1, 2}) wrong += check_outer_product(channels, columns, pixels, lines);
  std::printf("%ld wrong\n", static_cast<long>(wrong));
  return wrong != 0;
}
