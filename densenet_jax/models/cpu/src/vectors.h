// Vectors of floats, and the operands of products: floats, or with -DBFLOAT16 words of two values of
// bfloat16.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace densenet {

// kLanes: floats in a vector.  kRows: pixels of a tile of sums, two vectors wide, in registers.
#if defined(BFLOAT16) && defined(__AMX_BF16__)  // registers for matrices: see amx.h
#define AMX
constexpr int kLanes = 16, kRows = 16;
#elif defined(__AVX512F__)  // 32 registers of 16: 28 sums, 2 weights, 1 input
constexpr int kLanes = 16, kRows = 14;
#elif defined(__AVX__)      // 16 registers of 8: 12 sums
constexpr int kLanes = 8, kRows = 6;
#elif defined(__aarch64__)  // 32 registers of 4
constexpr int kLanes = 4, kRows = 12;
#else
constexpr int kLanes = 4, kRows = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef Vec AnyVec __attribute__((aligned(4), may_alias));

// Sums of M pixels and N vectors of columns.
template <int M, int N>
struct Tile {
  Vec v[M][N];
};

inline Vec load(const float* p) { return *reinterpret_cast<const AnyVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<AnyVec*>(p) = v; }
// Loads and stores of at most kLanes values; what lies behind them is 0, and stays as it is.
#if defined(__AVX512F__)
inline __mmask16 first(int64_t count) { return (1u << std::max<int64_t>(count, 0)) - 1; }
inline Vec load(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : Vec(_mm512_maskz_loadu_ps(first(count), p));
}
inline void store(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  _mm512_mask_storeu_ps(p, first(count), __m512(v));
}
#elif defined(__AVX__)
inline __m256i first(int64_t count) {
  static const int32_t kMask[] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  const int32_t* from = kMask + kLanes - std::max<int64_t>(count, 0);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline Vec load(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : Vec(_mm256_maskload_ps(p, first(count)));
}
inline void store(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  _mm256_maskstore_ps(p, first(count), __m256(v));
}
#else
inline Vec load(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float rest[kLanes] = {};
  std::memcpy(rest, p, std::max<int64_t>(count, 0) * 4);
  return load(rest);
}
inline void store(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  float rest[kLanes];
  store(rest, v);
  std::memcpy(p, rest, std::max<int64_t>(count, 0) * 4);
}
#endif

// Keeps a value in a register, where the compiler would load it again for each use.
inline Vec keep(Vec v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

#if defined(BFLOAT16)
struct Element {
  uint16_t bits;
};
constexpr int kPair = 2;  // elements in a word

typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef Halves AnyHalves __attribute__((aligned(2), may_alias));

// Whether the processor multiplies pairs; otherwise other instructions do the same, for tests.
#if defined(__AVX512BF16__)
constexpr bool kMultipliesBfloat16 = true;
inline Halves rounded(Vec v) { return Halves(_mm512_cvtneps_pbh(__m512(v))); }
inline Words widened(Halves v) { return Words(_mm512_cvtepu16_epi32(__m256i(v))); }
// Two values of each lane, rounded, in a word.
inline Vec paired(Vec first, Vec second) {
  const auto each = Words(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  __m512i both = __m512i(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)));
  return Vec(_mm512_permutexvar_epi16(__m512i(each | (each + 16) << 16), both));
}
inline void add_product(Vec& sum, Vec a, Vec b) {
  sum = Vec(_mm512_dpbf16_ps(__m512(sum), __m512bh(a), __m512bh(b)));
}
#else
constexpr bool kMultipliesBfloat16 = false;
inline Halves rounded(Vec v) {
  Words bits = Words(v), nearest = bits + 0x7fff + (bits >> 16 & 1);
  return __builtin_convertvector((v == v ? nearest : bits | 0x400000) >> 16, Halves);
}
inline Words widened(Halves v) { return __builtin_convertvector(v, Words); }
// Two values of each lane, rounded, in a word.
inline Vec paired(Vec first, Vec second) {
  return Vec(widened(rounded(first)) | widened(rounded(second)) << 16);
}
inline void add_product(Vec& sum, Vec a, Vec b) {
  sum += Vec(Words(a) & 0xffff0000) * Vec(Words(b) & 0xffff0000);
  sum += Vec(Words(a) << 16) * Vec(Words(b) << 16);
}
#endif

// Stores values as neighbours.
inline void store(Element* p, Vec v) { *reinterpret_cast<AnyHalves*>(p) = rounded(v); }
// Stores values as halves of words: as the first, beside zeros, for an even i, else as the second.
inline void put(Element* p, int64_t i, Vec v) {
  Words half = widened(rounded(v));
  float* words = reinterpret_cast<float*>(p);
  store(words, Vec(i % 2 ? Words(load(words)) | half << 16 : half));
}
inline Vec words(const Element* p) { return load(reinterpret_cast<const float*>(p)); }
inline Vec broadcast(const Element* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return Vec(word - Words{});
}
#else
typedef float Element;
constexpr int kPair = 1;
constexpr bool kMultipliesBfloat16 = false;

inline void add_product(Vec& sum, Vec a, Vec b) { sum += a * b; }
inline void put(Element* p, int64_t, Vec v) { store(p, v); }
inline Vec words(const Element* p) { return load(p); }
inline Vec broadcast(const Element* p) { return *p - Vec{}; }
#endif

// NaN stays NaN, so that a broken network is noticed.
#if defined(__AVX512F__)
inline Vec relu(Vec v) { return Vec(_mm512_max_ps(__m512(Vec{}), __m512(v))); }
#elif defined(__AVX__)
inline Vec relu(Vec v) { return Vec(_mm256_max_ps(__m256(Vec{}), __m256(v))); }
#else
inline Vec relu(Vec v) { return v < 0 ? Vec{} : v; }
#endif

}  // namespace densenet
