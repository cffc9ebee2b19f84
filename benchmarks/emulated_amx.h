// The instructions of AMX for bfloat16 by others, for processors without them: put before a source by
// -include.  What the processor refuses ends the program.

#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated_amx {

struct Register {
  int rows = 0, bytes = 0;
  uint32_t words[16][16] = {};
};

struct Registers {
  bool configured = false;
  Register all[8];
};
inline thread_local Registers registers;

inline void require(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "AMX: %s\n", what);
  std::abort();
}

inline Register& at(int number) {
  require(registers.configured, "a register is used before it has a size");
  require(registers.all[number].rows > 0, "a register without a size is used");
  return registers.all[number];
}

inline void configure(const void* memory) {
  const uint8_t* bytes = static_cast<const uint8_t*>(memory);
  require(bytes[0] == 1, "the palette is not 1");
  for (int i = 1; i < 16; ++i) require(bytes[i] == 0, "a reserved byte is not 0");
  registers = {};
  registers.configured = true;
  for (int i = 0; i < 16; ++i) {
    uint16_t width;
    std::memcpy(&width, bytes + 16 + 2 * i, 2);
    int rows = bytes[48 + i];
    require(width <= 64 && width % 4 == 0 && rows <= 16, "a register's size is too large");
    require((width > 0) == (rows > 0) && (i < 8 || rows == 0), "a register's size is no size");
    if (i < 8) registers.all[i].rows = rows, registers.all[i].bytes = width;
  }
}

inline void release() { registers = {}; }
inline void zero(int to) { std::memset(at(to).words, 0, sizeof(Register::words)); }

inline void load(int to, const void* memory, int64_t stride) {
  Register& r = at(to);
  zero(to);
  for (int i = 0; i < r.rows; ++i)
    std::memcpy(r.words[i], static_cast<const char*>(memory) + i * stride, r.bytes);
}

inline void store(int from, void* memory, int64_t stride) {
  Register& r = at(from);
  for (int i = 0; i < r.rows; ++i)
    std::memcpy(static_cast<char*>(memory) + i * stride, r.words[i], r.bytes);
}

inline float bfloat16(uint32_t word, int half) {
  uint32_t bits = half ? word & 0xffff0000 : word << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void multiply(int to, int rows, int columns) {
  Register &sums = at(to), &a = at(rows), &b = at(columns);
  require(to != rows && to != columns && rows != columns, "operands are the same register");
  require(a.rows == sums.rows && b.bytes == sums.bytes && a.bytes == 4 * b.rows,
          "sizes do not fit together");
  for (int m = 0; m < sums.rows; ++m)
    for (int n = 0; n < sums.bytes / 4; ++n) {
      float sum;
      std::memcpy(&sum, &sums.words[m][n], 4);
      for (int k = 0; k < b.rows; ++k)
        for (int half = 0; half < 2; ++half)
          sum += bfloat16(a.words[m][k], half) * bfloat16(b.words[k][n], half);
      std::memcpy(&sums.words[m][n], &sum, 4);
    }
}

}  // namespace emulated_amx

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated_amx::configure
#define _tile_release emulated_amx::release
#define _tile_zero emulated_amx::zero
#define _tile_loadd emulated_amx::load
#define _tile_stored emulated_amx::store
#define _tile_dpbf16ps emulated_amx::multiply
#define syscall(...) 0  // the system lets the process use the registers
