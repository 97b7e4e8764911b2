// Keys and values of all layers, in blocks of positions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "aligned_buffer.h"

namespace tightpack {

struct KVCacheShape {
    // dynamic_int8: a scale for each position and head; the others have a static one a layer.
    enum class Precision { bf16, fp8, int8, dynamic_int8 };
    Precision precision = Precision::bf16;
    std::int64_t num_layers = 0;
    std::int64_t num_blocks = 0;
    std::int64_t block_size = 16;  // a multiple of 16
    std::int64_t num_kv_heads = 0;
    std::int64_t head_dim = 0;  // even, at most 256
    // value = code * scale; one a layer, or none at all where all are 1.
    std::vector<float> key_scales;
    std::vector<float> value_scales;
};

// One head of one layer of a cache: where it lies and what its codes mean. A block's keys and values are in
// the order in which attention multiplies them, a vector of 16 lanes being one load: lanes are positions of the
// keys, and dimensions of the values. With B = block_size, D = head_dim and E = padded_dim:
//
//   keys    code(position, d) = ((position/16 * D/2 + d/2) * 16 + position%16) * 2 + d%2
//   values  code(position, d) = (position/2 * E + d) * 2 + position%2
//   scales  float32 [B] of the keys, then [B] of the values; dynamic_int8 only
struct KVHead {
    static constexpr std::int64_t tile = 16;  // positions whose keys lie together

    std::byte* data = nullptr;      // the keys of block 0
    std::int64_t block_stride = 0;  // bytes from a block to the next
    std::int64_t values = 0;        // bytes from a block's keys to its values
    std::int64_t key_scales = 0;    // ... and to its scales
    std::int64_t value_scales = 0;
    std::int64_t block_size = 0;
    std::int64_t head_dim = 0;
    std::int64_t padded_dim = 0;  // head_dim rounded up to 16
    KVCacheShape::Precision precision = KVCacheShape::Precision::bf16;
    float key_scale = 1;  // static ones
    float value_scale = 1;
};

class KVCache {
public:
    // Zeros in every position. Throws std::invalid_argument where the numbers make no cache.
    explicit KVCache(const KVCacheShape& shape);

    const KVCacheShape& shape() const { return shape_; }
    std::size_t num_bytes() const { return memory_.size(); }

    // Bytes that one block takes in all layers, for sizing a cache. Throws as the constructor does, except
    // that num_blocks does not matter.
    static std::size_t block_bytes(const KVCacheShape& shape);

    // Sets the positions [first, last) of a table of blocks to zero in all layers. Between steps every
    // position must hold finite numbers: what lies behind a query is multiplied by a probability of zero,
    // which would not hide an infinity; so the positions of a request that failed are cleared.
    void clear(const std::int32_t* blocks, std::int64_t first, std::int64_t last);

    // The codes of positions [0, count) of a table of blocks, [count][num_kv_heads][head_dim], of 2 bytes in
    // bf16 and 1 otherwise; and their scales, [count][num_kv_heads].
    void read(std::int64_t layer, const std::int32_t* blocks, std::int64_t count, std::byte* keys,
              std::byte* values, float* key_scales, float* value_scales) const;

    KVHead head(std::int64_t layer, std::int64_t kv_head) const;
    // Bytes from a head to the next of the same layer.
    std::int64_t head_stride() const { return unit_; }

private:
    KVCacheShape shape_;
    KVHead layout_;          // of every head; data is left out
    std::int64_t unit_ = 0;  // bytes of one block of one head of one layer
    AlignedBuffer memory_;   // [layers][blocks][heads][unit]
};

}  // namespace tightpack
