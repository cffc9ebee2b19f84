// Memory: huge pages, and scratch memory.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace densenet {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Asks for huge pages, as NumPy does for its arrays.  XLA allocates its memory anew for each call of a
// program, and the first touch of a page of 4 KB costs as much as a thousand products.
inline void use_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t size) {
#if defined(__linux__)
  constexpr int64_t kPage = 4096, kWorthwhile = 64 * kPage;
  if (size < kWorthwhile) return;
  int64_t at = reinterpret_cast<int64_t>(data), from = at / kPage * kPage;
  int64_t to = round_up(at + size, kPage);  // whole pages, so that neighbours leave none between them
  madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // advice: a failure is no error
#endif
}

// Scratch memory of a thread, kept from call to call because fresh pages are slow.
template <class T = float>
inline T* scratch(int slot, int64_t count) {
  struct Buffer {
    void* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffers[12];
  Buffer& buffer = buffers[slot];
  int64_t size = count * sizeof(T);
  if (buffer.size < size) {
    std::free(buffer.data);
    buffer.size = 0;
    buffer.data = std::aligned_alloc(64, round_up(size, 64));
    if (buffer.data == nullptr) throw std::bad_alloc();
    use_huge_pages(buffer.data, size);
    buffer.size = size;
  }
  return static_cast<T*>(buffer.data);
}

}  // namespace densenet
