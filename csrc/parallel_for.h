#pragma once

#include <cstdint>
#include <functional>

namespace tightpack {

// Calls body(first, last) for consecutive ranges of at most `grain` that cover [0, count), on up to `threads`
// threads, the caller's among them. Ranges are handed out as threads come free, so a slow core delays the end
// by one range at most. Returns when all are done. body must not throw. Where the system refuses a thread,
// the work is done by those there are.
void parallel_for(std::int64_t count, std::int64_t grain, int threads,
                  const std::function<void(std::int64_t first, std::int64_t last)>& body);

}  // namespace tightpack
