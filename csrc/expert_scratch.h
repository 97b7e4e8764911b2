// What a mixture of experts needs beside the weights: where a step's tokens go, and memory for what becomes of
// them there.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "packed_linear.h"
#include "rows.h"

namespace tightpack {

// One linear of an expert: weights over the same inputs, their outputs one after the other; several where formats
// differ.
struct ExpertLinear {
    // The formats in which its runs read a row, each once, and the buffer (see rows_like) that holds those.
    struct Input {
        RowFormat format = {};
        int buffer = 0;
    };
    struct Run {
        const PackedLinear* weight = nullptr;
        std::size_t input = 0;
        std::int64_t first_output = 0;
    };
    std::vector<Input> inputs;
    std::vector<Run> runs;
    std::int64_t outputs = 0;
};

// A token is copied once for each of its experts, and the copies sorted, so that those of an expert are
// neighbours; in an expert they keep the order of the tokens.
struct ExpertPlan {
    std::int64_t first_token = 0;
    std::vector<std::int64_t> firsts;   // of each expert's copies, and behind the last
    std::vector<std::int32_t> tokens;   // of each copy
    std::vector<std::int32_t> experts;  // of each copy
    std::vector<std::int32_t> copies;   // [tokens][used], in the order of the router's scores

    // Of tokens [first, last). routes: of all tokens, [2 * used] each, as choose_experts makes them.
    void sort(const float* routes, std::int64_t first, std::int64_t last, std::int64_t used,
              std::size_t num_experts);
    std::int64_t count() const { return static_cast<std::int64_t>(tokens.size()); }
};

// Memory that the layers of a program share.
class ExpertScratch {
  public:
    // A thread's own.
    struct alignas(64) Own {
        ExpertPlan plan;
        AlignedBuffer row;          // as wide as any
        std::uint64_t tickets = 0;  // that all shared work so far has drawn
    };

    explicit ExpertScratch(int threads) : own_(static_cast<std::size_t>(threads)) {}

    // What a layer needs; all layers come before the first `reserve`.
    void fit(std::int64_t used, std::int64_t hidden, std::int64_t inner);
    // The number of the ordinal-th buffer whose rows lie in memory as the format's do.
    int rows_like(const RowFormat& format, int ordinal);
    // Of two formats, whether rows lie alike.
    static bool alike(const RowFormat& a, const RowFormat& b);

    // Tokens that there is memory for at a time, however many a step has.
    std::int64_t most_tokens() const { return most_tokens_; }
    // For a step of so many tokens. What was there is lost where memory grows.
    void reserve(std::int64_t tokens);

    Own& own(int thread) { return own_[static_cast<std::size_t>(thread)]; }
    Rows rows(const ExpertLinear::Input& input) const {
        Rows rows = rows_[static_cast<std::size_t>(input.buffer)].rows;
        rows.format = input.format;
        return rows;
    }
    float* gate_up() const { return gate_up_.as<float>(); }  // [copies][2 * inner]
    float* outputs() const { return outputs_.as<float>(); }  // [copies][hidden]

    // Tickets are never taken back: shared work draws one for each piece and one more for each thread, which
    // tells it that nothing is left.
    std::atomic<std::uint64_t>& next_ticket() { return next_ticket_; }

  private:
    struct RowsLike {
        RowFormat format;
        int ordinal = 0;
        RowBuffer buffer = {};
        Rows rows = {};
    };

    std::vector<Own> own_;
    std::vector<RowsLike> rows_;
    std::int64_t used_ = 0;
    std::int64_t hidden_ = 0;
    std::int64_t inner_ = 0;
    std::int64_t most_tokens_ = 0;
    std::int64_t reserved_tokens_ = 0;
    AlignedBuffer gate_up_;
    AlignedBuffer outputs_;
    alignas(64) std::atomic<std::uint64_t> next_ticket_{0};
};

}  // namespace tightpack
