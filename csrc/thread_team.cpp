#include "thread_team.h"

#include <optional>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif

namespace tightpack {
namespace {

// Pauses of 40 to 140 cycles, so 30 to 100 us: longer than any stretch of a step between two barriers should
// be uneven by, shorter than what a person or another program would notice.
constexpr int spins = 2000;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Binds the calling thread to CPUs, until the end of its life or of this object's. Where the system refuses, the
// thread stays where it was: slower, not wrong.
class Bound {
  public:
#if defined(__linux__)
    explicit Bound(const std::vector<int>& cpus) {
        if (sched_getaffinity(0, sizeof before_, &before_) != 0) return;
        cpu_set_t wanted;
        CPU_ZERO(&wanted);
        for (const int cpu : cpus) CPU_SET(static_cast<std::size_t>(cpu), &wanted);
        bound_ = sched_setaffinity(0, sizeof wanted, &wanted) == 0;
    }
    ~Bound() {
        if (bound_) sched_setaffinity(0, sizeof before_, &before_);
    }

  private:
    cpu_set_t before_;
    bool bound_ = false;
#else
    explicit Bound(const std::vector<int>&) {}
#endif
};

}  // namespace

ThreadTeam::ThreadTeam(int threads, std::vector<std::vector<int>> cores)
    : count_(threads), cores_(std::move(cores)) {
    threads_.reserve(static_cast<std::size_t>(threads - 1));
    try {
        for (int index = 1; index < threads; ++index) threads_.emplace_back(&ThreadTeam::serve, this, index);
    } catch (...) {
        stopping_ = true;
        advance(round_);
        for (std::thread& thread : threads_) thread.join();
        throw;
    }
}

ThreadTeam::~ThreadTeam() {
    stopping_ = true;
    advance(round_);
    for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::run(const std::function<void(Member&)>& body) {
    std::optional<Bound> bound;
    if (!cores_.empty()) bound.emplace(cores_.front());
    body_ = &body;
    advance(round_);
    Member self(*this, 0);
    body(self);
    self.barrier();
}

void ThreadTeam::serve(int index) {
    std::optional<Bound> bound;
    if (!cores_.empty()) bound.emplace(cores_[static_cast<std::size_t>(index)]);
    std::uint32_t seen = 0;
    Member self(*this, index);
    for (;;) {
        wait_while(round_, seen);
        seen = round_.load(std::memory_order_acquire);
        if (stopping_) return;
        (*body_)(self);
        self.barrier();
    }
}

void ThreadTeam::Member::barrier() {
    ThreadTeam& team = team_;
    if (team.count_ == 1) return;
    const std::uint32_t phase = team.phase_.load(std::memory_order_relaxed);
    if (team.arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<std::uint32_t>(team.count_)) {
        team.arrived_.store(0, std::memory_order_relaxed);
        team.advance(team.phase_);
    } else {
        team.wait_while(team.phase_, phase);
    }
}

void ThreadTeam::wait_while(std::atomic<std::uint32_t>& word, std::uint32_t value) {
    for (int i = 0; i < spins; ++i) {
        if (word.load(std::memory_order_acquire) != value) return;
        pause();
    }
    // Counted, so that whoever advances pays for a system call only when somebody sleeps. Sequentially
    // consistent on both sides: either the sleeper sees the new value, or the other sees the sleeper.
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (word.load(std::memory_order_seq_cst) == value) word.wait(value, std::memory_order_seq_cst);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void ThreadTeam::advance(std::atomic<std::uint32_t>& word) {
    word.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) word.notify_all();
}

}  // namespace tightpack
