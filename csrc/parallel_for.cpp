#include "parallel_for.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace tightpack {

void parallel_for(std::int64_t count, std::int64_t grain, int threads,
                  const std::function<void(std::int64_t first, std::int64_t last)>& body) {
    if (count <= 0) return;
    const std::int64_t num_ranges = (count + grain - 1) / grain;
    std::atomic<std::int64_t> next_range{0};
    const auto work = [&] {
        for (;;) {
            const std::int64_t range = next_range.fetch_add(1, std::memory_order_relaxed);
            if (range >= num_ranges) return;
            body(range * grain, std::min(count, (range + 1) * grain));
        }
    };
    const std::int64_t num_helpers = std::min<std::int64_t>(threads, num_ranges) - 1;
    std::vector<std::thread> helpers;
    helpers.reserve(static_cast<std::size_t>(std::max<std::int64_t>(num_helpers, 0)));
    try {
        for (std::int64_t i = 0; i < num_helpers; ++i) helpers.emplace_back(work);
    } catch (const std::system_error&) {
        // No more threads to be had: those that started, and this one, share the rest.
    }
    work();
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace tightpack
