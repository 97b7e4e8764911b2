#include "step_barriers.h"

#include <algorithm>

namespace tightpack {
namespace {

// An access as far as threads come into conflict over it.
struct Touch {
    Access access;
    int place;  // a slot, or a layer of the cache
};

bool conflict(const Touch& earlier, const Touch& later) {
    const Access &a = earlier.access, &b = later.access;
    if (earlier.place != later.place || !(a.writes || b.writes)) return false;
    if (a.value != b.value) return true;
    if (a.by_rows && b.by_rows) return false;
    return a.first_column < b.last_column && b.first_column < a.last_column;
}

}  // namespace

std::vector<std::uint8_t> barriers(const std::vector<std::unique_ptr<Operation>>& operations,
                                   const StepStorage& storage, bool single_row) {
    std::vector<std::uint8_t> needed(operations.size());
    std::vector<Touch> since_last;
    for (std::size_t i = 0; i < operations.size(); ++i) {
        std::vector<Touch> touches;
        for (Access access : operations[i]->accesses()) {
            const bool is_value = access.value >= 0;
            if (single_row && is_value && storage.shape(access.value).kind == ValueShape::Kind::rows)
                continue;
            // Every thread makes the whole row, so none has a share of its own.
            if (single_row && operations[i]->makes_rows()) access.by_rows = false;
            touches.push_back({access, is_value ? storage.slot(access.value) : access.value});
        }
        const auto waits_for = [&](const Touch& later) {
            return std::ranges::any_of(since_last,
                                       [&](const Touch& earlier) { return conflict(earlier, later); });
        };
        if (std::ranges::any_of(touches, waits_for)) {
            needed[i] = 1;
            since_last.clear();
        }
        since_last.insert(since_last.end(), touches.begin(), touches.end());
    }
    return needed;
}

}  // namespace tightpack
