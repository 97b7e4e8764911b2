// Attention of queries to a paged cache, and the filling of the cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "aligned_buffer.h"
#include "attention_kernels.h"
#include "kernel_table.h"
#include "kv_cache.h"
#include "step_inputs.h"
#include "thread_team.h"

namespace tightpack {

struct AttentionSpec {
    std::int64_t num_heads = 0;  // of queries: a multiple of num_kv_heads
    std::int64_t num_kv_heads =
        0;  // each is shared by num_heads / num_kv_heads neighbouring heads of queries
    std::int64_t head_dim = 0;
    float scale = 1;          // of the scores, before the softcap; positive
    float softcap = 0;        // c: a score x becomes c * tanh(x / c); 0: none
    std::int64_t window = 0;  // position p sees p - window + 1 .. p; 0: all up to p
};

// float32 [positions][head_dim / 2] each, for every position of the step.
struct RotaryTable {
    const float* cos = nullptr;
    const float* sin = nullptr;
};

struct StoreArguments {
    // Which position, in which blocks, each row is; groups by ascending first_query, which counts rows.
    std::span<const QueryGroup> groups;
    // float32 [rows][stride]: the heads of the queries, of the keys and of the values, one after the other.
    // Either of queries and keys with values may be absent: num_heads or num_kv_heads is 0 then.
    const float* values = nullptr;
    std::int64_t stride = 0;
    std::int64_t num_heads = 0;
    std::int64_t num_kv_heads = 0;
    // RMSNorm of each head of the queries and of the keys: weights [head_dim], or none.
    const float* query_norm = nullptr;
    const float* key_norm = nullptr;
    float norm_eps = 0;
    RotaryTable rotary;                // cos and sin may both be absent: no rotation
    std::uint16_t* queries = nullptr;  // out: bfloat16 [rows][num_heads * head_dim]
};

// Rows [first_row, last_row): queries and keys are normalized, then rotated (a pair is the dimensions i and
// i + head_dim / 2); queries are rounded to bfloat16, keys and values into the cache. The result does not
// depend on how rows are split over threads, which may call this at the same time for rows of their own.
// num_kv_heads is the cache's or 0.
void rotate_and_store(const StoreArguments& arguments, KVCache& cache, std::int64_t layer,
                      const KernelTable& kernels, std::int64_t first_row, std::int64_t last_row);

// Of every query and head, softmax(scale * q k) v over the positions that the query sees: the same bits
// whatever else is computed with it and on however many threads.
class Attention {
public:
    // threads: of the team that run is called on. Throws std::invalid_argument where num_kv_heads does not
    // divide num_heads or scale is not positive.
    Attention(const AttentionSpec& spec, int threads);

    // Called by all threads of the team together, with the same arguments; a barrier of the team lies between
    // two calls. queries: bfloat16 [rows][num_heads * head_dim]; out: float32, the same shape. Only the rows
    // of the groups are read and written.
    void run(ThreadTeam::Member& member, std::span<const QueryGroup> groups, const std::uint16_t* queries,
             const KVCache& cache, std::int64_t layer, const KernelTable& kernels, float* out);

private:
    // Neighbouring queries of a group, one thread's work for each head of keys and values.
    struct Tile {
        const QueryGroup* group;
        std::int32_t first_query;  // within the group
        std::int32_t num_queries;
        std::int64_t first_partition, last_partition;
        std::int64_t first_unit;  // where its partitions begin among those of all tiles
    };
    // A thread's own, on cache lines of its own.
    struct alignas(64) Scratch {
        std::vector<Tile> tiles;
        std::int64_t units = 0;  // partitions of all tiles
        AlignedBuffer memory;
        std::vector<PartialSoftmax> partials;
        std::uint64_t tickets = 0;  // that all calls so far have drawn
    };

    void plan(Scratch& scratch, std::span<const QueryGroup> groups) const;
    AttentionTile tile_work(const Tile& tile, std::int64_t kv_head, const std::uint16_t* queries,
                            const KVCache& cache, std::int64_t layer, const Scratch& scratch) const;
    PartialSoftmax partial(std::byte* memory) const;
    void finish(const Tile& tile, std::int64_t kv_head, std::span<const PartialSoftmax> partials,
                const KVCache& cache, std::int64_t layer, const KernelTable& kernels, float* out) const;

    AttentionSpec spec_;
    std::int64_t heads_;         // of queries to one of keys
    std::int64_t tile_queries_;  // at most, to a tile
    std::int64_t rows_;          // at most, of a tile
    std::int64_t padded_dim_;
    std::int64_t partial_bytes_;
    std::vector<Scratch> scratch_;
    AlignedBuffer split_;  // partial results where a tile's partitions are split over threads
    alignas(64) std::atomic<std::uint64_t> next_ticket_{0};
};

}  // namespace tightpack
