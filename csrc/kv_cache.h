// Keys and values of all layers, in blocks of positions.
#pragma once

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
    std::int64_t head_dim = 0;     // even
    // value = code * scale; one a layer, 1 where there is none.
    std::vector<float> key_scales;
    std::vector<float> value_scales;
};

}  // namespace tightpack
