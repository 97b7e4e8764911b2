#include "expert_scratch.h"

#include <algorithm>
#include <numeric>

namespace tightpack {
namespace {

// What copies become is kept within so many bytes, since a long prompt through wide experts would take
// gigabytes. Experts still have some tens of rows each when their weights are read (Mixtral-8x7B 64,
// Qwen3-30B-A3B 36), enough for the products to take longer than the reading.
constexpr std::int64_t most_bytes = 64 << 20;

}  // namespace

void ExpertPlan::sort(const float* routes, std::int64_t first, std::int64_t last, std::int64_t used,
                      std::size_t num_experts) {
    first_token = first;
    const auto expert_of = [&](std::int64_t token, std::int64_t choice) {
        return static_cast<std::size_t>(routes[token * 2 * used + used + choice]);
    };
    const auto num_copies = static_cast<std::size_t>((last - first) * used);
    tokens.resize(num_copies);
    experts.resize(num_copies);
    copies.resize(num_copies);
    // Of each expert, how many come before it; then, while they are placed, where its next one goes: at the
    // end each has moved to where the next expert's begin.
    firsts.assign(num_experts + 1, 0);
    for (std::int64_t token = first; token < last; ++token) {
        for (std::int64_t choice = 0; choice < used; ++choice) ++firsts[expert_of(token, choice) + 1];
    }
    std::partial_sum(firsts.begin(), firsts.end(), firsts.begin());
    for (std::int64_t token = first; token < last; ++token) {
        for (std::int64_t choice = 0; choice < used; ++choice) {
            const std::size_t expert = expert_of(token, choice);
            const auto copy = static_cast<std::size_t>(firsts[expert]++);
            tokens[copy] = static_cast<std::int32_t>(token);
            experts[copy] = static_cast<std::int32_t>(expert);
            copies[static_cast<std::size_t>((token - first) * used + choice)] = static_cast<std::int32_t>(copy);
        }
    }
    std::copy_backward(firsts.begin(), firsts.end() - 1, firsts.end());
    firsts.front() = 0;
}

void ExpertScratch::fit(std::int64_t used, std::int64_t hidden, std::int64_t inner) {
    used_ = std::max(used_, used);
    hidden_ = std::max(hidden_, hidden);
    inner_ = std::max(inner_, inner);
    const std::int64_t token_bytes = used_ * (2 * inner_ + hidden_) * static_cast<std::int64_t>(sizeof(float));
    most_tokens_ = std::max<std::int64_t>(most_bytes / token_bytes, 1);
    for (Own& own : own_) own.row = AlignedBuffer(static_cast<std::size_t>(std::max(hidden_, inner_)) * 4);
}

bool ExpertScratch::alike(const RowFormat& a, const RowFormat& b) {
    return a.codes == b.codes && a.width == b.width && a.group == b.group &&
           (a.outlier_threshold > 0) == (b.outlier_threshold > 0);
}

int ExpertScratch::rows_like(const RowFormat& format, int ordinal) {
    const auto found = std::ranges::find_if(rows_, [&](const RowsLike& rows) {
        return rows.ordinal == ordinal && alike(rows.format, format);
    });
    const auto number = static_cast<int>(found - rows_.begin());
    if (found == rows_.end()) rows_.push_back({.format = format, .ordinal = ordinal});
    return number;
}

void ExpertScratch::reserve(std::int64_t tokens) {
    tokens = std::min(tokens, most_tokens_);
    if (tokens <= reserved_tokens_) return;
    // As StepStorage does, so that a longer prompt every time is not new memory every time.
    reserved_tokens_ = std::min(std::max(tokens, reserved_tokens_ + reserved_tokens_ / 2), most_tokens_);
    const std::int64_t copies = reserved_tokens_ * used_;
    for (RowsLike& rows : rows_) rows.rows = rows.buffer.resize(rows.format, copies);
    gate_up_ = AlignedBuffer(static_cast<std::size_t>(copies * 2 * inner_) * sizeof(float));
    outputs_ = AlignedBuffer(static_cast<std::size_t>(copies * hidden_) * sizeof(float));
}

}  // namespace tightpack
