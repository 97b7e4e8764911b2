#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace tightpack {

// CPUs have lower numbers.
inline constexpr int max_cpus = 1024;

// Threads that stay: a step of a model is some three hundred short parallel stretches, and starting threads
// for each (or waking them) would cost more than the work. Between stretches they spin for a short while,
// since the next is microseconds away, then sleep in the kernel, since whoever else wants the core must have it.
class ThreadTeam {
public:
    // What one thread of the team knows of itself. Thread 0 is the one that called run.
    class Member {
    public:
        int index() const { return index_; }
        int count() const { return team_.count_; }

        // Returns when all threads of the team have called it as often. What any wrote before, all see after.
        void barrier();

    private:
        friend class ThreadTeam;
        Member(ThreadTeam& team, int index) : team_(team), index_(index) {}
        ThreadTeam& team_;
        int index_;
    };

    // threads: 1 or more, the caller of run among them. cores: for each thread the CPUs that it may run on, the
    // caller of run for the time of the call; or empty, to leave it to the system. Give them when the team takes
    // every core there is: the system, seeing one more thread wake up, puts two of the team on one core, and
    // there the one spins for the other (which made steps seven times as long). Throws std::system_error where
    // the system refuses a thread.
    explicit ThreadTeam(int threads, std::vector<std::vector<int>> cores = {});
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int count() const { return count_; }

    // Calls body on every thread of the team and returns when all are done. One call at a time; body must not
    // throw.
    void run(const std::function<void(Member&)>& body);

private:
    void serve(int index);
    void wait_while(std::atomic<std::uint32_t>& word, std::uint32_t value);
    void advance(std::atomic<std::uint32_t>& word);

    const int count_;
    const std::vector<std::vector<int>> cores_;
    const std::function<void(Member&)>* body_ = nullptr;
    bool stopping_ = false;
    // Each on a cache line of its own: a thread that spins on one must not slow a write to another.
    alignas(64) std::atomic<std::uint32_t> round_{0};
    alignas(64) std::atomic<std::uint32_t> arrived_{0};
    alignas(64) std::atomic<std::uint32_t> phase_{0};
    alignas(64) std::atomic<std::uint32_t> sleepers_{0};
    std::vector<std::thread> threads_;
};

}  // namespace tightpack
