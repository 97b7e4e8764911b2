// What the kernels of attention are given: plain structures, one call's work each.
#pragma once

#include <cstdint>

#include "kv_cache.h"

namespace tightpack {

// Keys are walked in partitions at fixed positions, each a softmax of its own, merged in ascending order: by
// one thread or by several, the arithmetic is the same.
inline constexpr std::int64_t partition_keys = 128;
// Rows (a query's head each) that the kernels take together.
inline constexpr std::int64_t row_group = 8;

// What is known of a row after some partitions: the largest score (as an exponent of two), the sum of
// 2^(score - largest), and the values weighted by that. Empty: minus infinity, 0 and zeros.
struct PartialSoftmax {
    float* largest = nullptr;   // [rows]
    float* sums = nullptr;      // [rows]
    float* weighted = nullptr;  // [rows][padded_dim], at a multiple of 64 bytes
};

// Neighbouring queries of a request, all heads that share a head of keys and values: row = query * heads +
// head.
struct AttentionTile {
    const std::uint16_t* queries = nullptr;  // bfloat16: the first query's first head
    std::int64_t query_stride = 0;           // from query to query
    std::int64_t num_queries = 0;
    std::int64_t heads = 0;
    const std::int32_t* positions = nullptr;  // [num_queries], ascending
    const std::int32_t* blocks = nullptr;
    KVHead keys_values;
    float scale = 1;
    float softcap = 0;        // 0: none
    std::int64_t window = 0;  // 0: none
    std::int64_t first_partition = 0, last_partition = 0;
    // What the thread most likely attends to afterwards, fetched while this ends; next_keys 0: nothing.
    const std::int32_t* next_blocks = nullptr;
    const std::byte* next_data = nullptr;  // its KVHead::data
    std::int64_t next_first_key = 0;
    std::int64_t next_keys = 0;  // from next_first_key on
    PartialSoftmax state;          // set to empty, then all partitions are merged into it
    std::byte* scratch = nullptr;  // attention_scratch_bytes, at a multiple of 64
};

// Bytes of scratch for tiles of so many rows.
constexpr std::int64_t attention_scratch_bytes(std::int64_t rows, std::int64_t padded_dim) {
    const std::int64_t groups = (rows + row_group - 1) / row_group;
    return groups * row_group * padded_dim * 4     // queries
           + 2 * row_group * partition_keys * 4    // scores, probabilities
           + 2 * partition_keys * padded_dim * 2;  // keys and values of a partition, widened to bfloat16
}

// The end of attention: partial results of the same rows, ascending, merged in the first; then the quotients.
struct AttentionFinish {
    const PartialSoftmax* partials = nullptr;  // [count]; the first is overwritten
    std::int64_t count = 1;
    std::int64_t num_queries = 0;
    std::int64_t heads = 0;
    std::int64_t head_dim = 0;
    std::int64_t padded_dim = 0;
    float value_scale = 1;
    float* out = nullptr;  // the first query's first head
    std::int64_t out_stride = 0;
};

// Neighbouring rows of one request: queries normalized, rotated and rounded; keys and values into their
// cache.
struct StoreRun {
    const float* rows = nullptr;  // queries | keys | values of the first row
    std::int64_t stride = 0;
    std::int64_t count = 0;
    std::int64_t num_heads = 0;
    std::int64_t num_kv_heads = 0;
    const std::int32_t* positions = nullptr;
    const std::int32_t* blocks = nullptr;
    const float* query_norm = nullptr;  // [head_dim], or none
    const float* key_norm = nullptr;
    float norm_eps = 0;
    const float* cos = nullptr;  // [positions][head_dim / 2], or none
    const float* sin = nullptr;
    std::uint16_t* queries = nullptr;  // [count][num_heads * head_dim]
    KVHead first_head;
    std::int64_t head_stride = 0;  // bytes
};

}  // namespace tightpack
