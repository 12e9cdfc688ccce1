// SPDX-License-Identifier: Apache-2.0
//
// The threads of one CUDA block as fibers of one host thread: a fiber runs until it has to wait, then the next one
// does. Barriers are therefore cheap, a run is the same every time, and both sanitizers can follow: the address
// sanitizer is told of every change of stack, the thread sanitizer sees every fiber as a thread and every barrier as
// one. A barrier that not all threads reach ends the program with a message.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#if defined(__has_feature)  // clang's way of saying it
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// The scheduler's own data is shared by all fibers on purpose.
#define EMULATED_UNSEEN __attribute__((no_sanitize("thread"), no_sanitize("address")))

namespace emulated {

constexpr std::size_t kStack = 64 * 1024;
constexpr unsigned kWithoutOrder = 1;  // changing fibers is no synchronisation

// Where to go on. The compiler's own jump changes a stack without a system call, and no sanitizer steps in.
struct Place {
    void* words[5];
};

struct Fiber {
    ucontext_t context;  // of its start
    Place place;         // since then
    bool started = false;
    std::unique_ptr<char[]> stack{new char[kStack]};
    unsigned index = 0;
    bool done = false;
    void* race_state = nullptr;
    void* fake_stack = nullptr;
};

#if defined(__SANITIZE_THREAD__)
// Threads of earlier launches, as the sanitizer knows them: to make one takes it longer than a small kernel runs.
inline std::vector<void*> spare_race_states;

EMULATED_UNSEEN inline void* take_race_state() {
    if (spare_race_states.empty()) {
        return __tsan_create_fiber(0);
    }
    void* const state = spare_race_states.back();
    spare_race_states.pop_back();
    return state;
}
#endif

class Team;
inline Team* team = nullptr;

class Barrier {
  public:
    explicit Barrier(unsigned expected) : expected_(expected) {}
    /// Wait for all; with `orders_memory`, what was written before is seen after.
    EMULATED_UNSEEN void wait(bool orders_memory);
    EMULATED_UNSEEN std::uint64_t generation() const { return generation_; }

  private:
    unsigned expected_, arrived_ = 0;
    std::uint64_t generation_ = 0;
    char order_[2] = {};  // by turns, so that a fast fiber's next arrival is not taken for this one
};

class Team {
  public:
    /// Run `body` on `count` fibers, in ascending order or in descending order.
    EMULATED_UNSEEN void run(unsigned count, bool descending, const std::function<void()>& body) {
        body_ = &body;
        team = this;
        fibers_ = std::vector<Fiber>(count);
#if defined(__SANITIZE_THREAD__)
        race_state_ = __tsan_get_current_fiber();
        __tsan_release(&begun_);
#endif
        for (unsigned index = 0; index < count; ++index) {
            Fiber& fiber = fibers_[index];
            fiber.index = index;
#if defined(__SANITIZE_THREAD__)
            fiber.race_state = take_race_state();
#endif
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.get();
            fiber.context.uc_stack.ss_size = kStack;
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, &Team::enter, 0);
        }
        unsigned left = count;
        while (left > 0) {
            moved_ = false;
            for (unsigned turn = 0; turn < count; ++turn) {
                Fiber& fiber = fibers_[descending ? count - 1 - turn : turn];
                if (fiber.done) {
                    continue;
                }
                resume(fiber);
                left -= fiber.done;
            }
            if (!moved_ && left > 0) {
                std::fputs("a barrier was not reached by all threads\n", stderr);
                std::_Exit(3);
            }
        }
#if defined(__SANITIZE_THREAD__)
        __tsan_acquire(&joined_);
        for (Fiber& fiber : fibers_) {
            spare_race_states.push_back(fiber.race_state);
        }
#endif
        fibers_.clear();
        team = nullptr;
    }

    EMULATED_UNSEEN unsigned index() const { return current_->index; }
    EMULATED_UNSEEN void progress() { moved_ = true; }

    /// Back to the scheduler, until it is this fiber's turn again.
    EMULATED_UNSEEN void pause() {
        Fiber& self = *current_;
        leave(self, &self.fake_stack);
        arrive(self.fake_stack);
    }

  private:
    EMULATED_UNSEEN static void enter() {
        team->arrive(nullptr);
#if defined(__SANITIZE_THREAD__)
        __tsan_acquire(&team->begun_);
#endif
        (*team->body_)();
        Fiber& self = *team->current_;
        self.done = true;
        team->moved_ = true;
#if defined(__SANITIZE_THREAD__)
        __tsan_release(&team->joined_);
#endif
        team->leave(self, nullptr);  // for good
    }

    EMULATED_UNSEEN void resume(Fiber& fiber) {
        current_ = &fiber;
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(&fake_stack_, fiber.stack.get(), kStack);
#endif
#if defined(__SANITIZE_THREAD__)
        __tsan_switch_to_fiber(fiber.race_state, kWithoutOrder);
#endif
        if (!__builtin_setjmp(place_.words)) {
            jump_into(fiber);
        }
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
    }

    EMULATED_UNSEEN void leave(Fiber& self, [[maybe_unused]] void** fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(fake_stack, main_stack_, main_size_);
#endif
#if defined(__SANITIZE_THREAD__)
        __tsan_switch_to_fiber(race_state_, kWithoutOrder);
#endif
        if (!__builtin_setjmp(self.place.words)) {
            jump(place_);
        }
    }

    __attribute__((noinline)) EMULATED_UNSEEN static void jump(Place& place) { __builtin_longjmp(place.words, 1); }
    __attribute__((noinline)) EMULATED_UNSEEN static void jump_into(Fiber& fiber) {
        if (fiber.started) {
            jump(fiber.place);
        }
        fiber.started = true;
        setcontext(&fiber.context);
        std::abort();
    }

    EMULATED_UNSEEN void arrive([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake_stack, &main_stack_, &main_size_);
#endif
    }

    const std::function<void()>* body_ = nullptr;
    std::vector<Fiber> fibers_;
    Fiber* current_ = nullptr;
    Place place_;
    bool moved_ = false;
    char begun_ = 0, joined_ = 0;
    void* race_state_ = nullptr;
    void* fake_stack_ = nullptr;
    const void* main_stack_ = nullptr;
    std::size_t main_size_ = 0;
};

EMULATED_UNSEEN inline void Barrier::wait([[maybe_unused]] bool orders_memory) {
    const std::uint64_t generation = generation_;
#if defined(__SANITIZE_THREAD__)
    if (orders_memory) {
        __tsan_release(&order_[generation & 1]);
    }
#endif
    if (++arrived_ == expected_) {
        arrived_ = 0;
        ++generation_;
        team->progress();
    }
    while (generation_ == generation) {
        team->pause();
    }
#if defined(__SANITIZE_THREAD__)
    if (orders_memory) {
        __tsan_acquire(&order_[generation & 1]);
    }
#endif
}

}  // namespace emulated
