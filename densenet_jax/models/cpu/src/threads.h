// Loops over the threads that XLA lends to a call.
//
// To wake a sleeping thread takes as long as a convolution of a small map, and a network has
// hundreds of loops.  So the helpers are woken once a call, and wait awake from loop to loop.
// Calls that run at the same time, of a server's requests, share the threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace densenet {

class Pool {
 public:
  explicit Pool(xla::ffi::ThreadPool& threads)
      : size_(std::max<int64_t>(1, threads.num_threads())),
        share_(std::max<int64_t>(1, size_ / in_progress_.calls)),
        loop_(std::make_shared<Loop>()) {
    for (int64_t i = 1; i < share_; ++i) threads.Schedule([loop = loop_] { loop->help(); });
  }
  ~Pool() { loop_->ended.store(true, std::memory_order_release); }
  Pool(const Pool&) = delete;

  // All threads, however many of them this call has: the order of sums may depend on this number,
  // so that results repeat to the bit.
  int64_t num_threads() const { return size_; }
  // The threads of this call.
  int64_t share() const { return share_; }

  // Calls f(0) ... f(count - 1) on the threads, including the calling one.  What a call throws is
  // thrown again here, when all calls have ended.
  template <class F>
  void run(int64_t count, F&& f) {
    if (count == 0) return;
    if (count > INT32_MAX) throw std::length_error("too many calls for a loop");
    using Function = std::remove_reference_t<F>;
    loop_->call = [](void* function, int64_t i) { (*static_cast<Function*>(function))(i); };
    loop_->function = const_cast<std::remove_const_t<Function>*>(&f);
    loop_->unfinished.store(count, std::memory_order_relaxed);
    loop_->untaken.store({0, static_cast<int32_t>(count)}, std::memory_order_release);
    while (loop_->take(kFirst)) {
    }
    for (int i = 0; loop_->unfinished.load(std::memory_order_acquire) > 0; ++i) wait(i);
    loop_->failed.store(false, std::memory_order_relaxed);
    if (loop_->error) std::rethrow_exception(std::exchange(loop_->error, nullptr));
  }

 private:
  // The calling thread takes the first call that is left, and helpers the last: so what a core has in
  // its cache, of one half of a map, is what it reads in the next loop.
  enum End { kFirst, kLast };
  struct Span {
    int32_t begin, end;
  };

  // A helper may start late, even after the call: the loop belongs to all of them, and is read
  // only by a thread that has taken one of its calls, so that it cannot have ended.
  struct Loop {
    std::atomic<Span> untaken{Span{0, 0}};
    std::atomic<int64_t> unfinished{0};
    std::atomic<bool> failed{false}, ended{false};
    std::exception_ptr error;
    void (*call)(void*, int64_t);
    void* function;

    // Makes one of the calls, if any is left.
    bool take(End which) {
      Span span = untaken.load(std::memory_order_relaxed), rest;
      int64_t n;
      do {
        if (span.begin >= span.end) return false;
        rest = span;
        n = which == kFirst ? rest.begin++ : --rest.end;
      } while (!untaken.compare_exchange_weak(span, rest, std::memory_order_acquire));
      try {
        call(function, n);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
      unfinished.fetch_sub(1, std::memory_order_acq_rel);
      return true;
    }

    void help() {
      for (int i = 0; !ended.load(std::memory_order_acquire); ++i) {
        if (take(kLast)) i = 0;
        wait(i);
      }
    }
  };

  // A short while awake, then whenever no other thread wants the processor.
  static void wait(int i) {
    if (i > 2000) {
      std::this_thread::yield();
      return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  struct InProgress {
    ~InProgress() { all.fetch_sub(1, std::memory_order_relaxed); }
    inline static std::atomic<int64_t> all{0};
    int64_t calls = all.fetch_add(1, std::memory_order_relaxed) + 1;
  };

  InProgress in_progress_;
  int64_t size_, share_;
  std::shared_ptr<Loop> loop_;
};

template <class F>
void parallel(Pool& pool, int64_t count, F&& f) {
  pool.run(count, f);
}

}  // namespace densenet
