// What one step computes, as Python hands it over.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tightpack {

// Neighbouring tokens of one request. Rows of the step are the tokens of the chunks, one after the other.
struct StepChunk {
    std::int32_t first_row = 0;
    std::int32_t num_rows = 0;
    std::int32_t first_position = 0;
    // Position p lies in block blocks[p / block_size]. There are enough for first_position + num_rows.
    const std::int32_t* blocks = nullptr;
};

struct StepInputs {
    std::span<const std::int32_t> token_ids;  // [rows]
    std::vector<StepChunk> chunks;
    // Rows whose logits are wanted, ascending.
    std::span<const std::int32_t> wanted_rows;
};

// The queries of one request that an attention layer computes: all rows of a chunk, or, in the last layer, those
// that are wanted.
struct QueryGroup {
    std::int32_t first_query = 0;   // row of the query and output matrices
    std::int32_t num_queries = 0;
    const std::int32_t* positions = nullptr;  // of each query, ascending
    const std::int32_t* blocks = nullptr;
};

}  // namespace tightpack
