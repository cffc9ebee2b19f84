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
    using Function = std::remove_reference_t<F>;
    loop_->call = [](void* function, int64_t i) { (*static_cast<Function*>(function))(i); };
    loop_->function = const_cast<std::remove_const_t<Function>*>(&f);
    loop_->count = count;
    loop_->unfinished.store(count, std::memory_order_relaxed);
    loop_->untaken.store(count, std::memory_order_release);
    while (loop_->take()) {
    }
    for (int i = 0; loop_->unfinished.load(std::memory_order_acquire) > 0; ++i) wait(i);
    loop_->failed.store(false, std::memory_order_relaxed);
    if (loop_->error) std::rethrow_exception(std::exchange(loop_->error, nullptr));
  }

 private:
  // A helper may start late, even after the call: the loop belongs to all of them, and is read
  // only by a thread that has taken one of its calls, so that it cannot have ended.
  struct Loop {
    std::atomic<int64_t> untaken{0}, unfinished{0};
    std::atomic<bool> failed{false}, ended{false};
    std::exception_ptr error;
    void (*call)(void*, int64_t);
    void* function;
    int64_t count;

    // Makes one of the calls, if any is left.
    bool take() {
      int64_t n = untaken.load(std::memory_order_relaxed);
      do {
        if (n <= 0) return false;
      } while (!untaken.compare_exchange_weak(n, n - 1, std::memory_order_acquire));
      try {
        call(function, count - n);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
      unfinished.fetch_sub(1, std::memory_order_acq_rel);
      return true;
    }

    void help() {
      for (int i = 0; !ended.load(std::memory_order_acquire); ++i) {
        if (take()) i = 0;
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
