// From weights as checkpoints hold them to PackedLinear.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "packed_linear.h"

namespace tightpack {

// Memory comes from an arena. Parts are matrices [outputs, inputs] over the same inputs, row by row, which become one below the other. All
// of the functions throw std::invalid_argument where numbers do not fit each other.

struct DensePart {
    enum class Type { float32, float16, bfloat16 };
    std::int64_t outputs = 0;
    Type type = Type::float32;
    const void* values = nullptr;
};
PackedLinear pack_dense(const std::vector<DensePart>& parts, std::int64_t inputs, int threads,
                        Arena& arena);

// W = scale * (code - zero), or scale * code + minimum.
struct IntPart {
    std::int64_t outputs = 0;
    const std::uint8_t* codes = nullptr;     // [outputs, inputs], int8 where neither of the two below is there
    const float* scales = nullptr;           // [outputs, groups]
    const std::uint8_t* zeros = nullptr;     // [outputs, groups], or null
    const float* minimums = nullptr;         // [outputs, groups], or null
};
// bits: 4 or 8. group: inputs that share a scale, `inputs` for one an output. Scales by group are kept in fp16
// after division by a power of two; a scale an output is kept in float32.
PackedLinear pack_int(const std::vector<IntPart>& parts, std::int64_t inputs, int bits, std::int64_t group,
                      int threads,
                        Arena& arena);

struct Fp8Part {
    std::int64_t outputs = 0;
    const std::uint8_t* codes = nullptr;  // E4M3
    const float* scales = nullptr;        // [ceil(outputs / rows), ceil(inputs / columns)]
    std::int64_t rows = 1;                // of the block that shares a scale
    std::int64_t columns = 0;
};
PackedLinear pack_fp8(const std::vector<Fp8Part>& parts, std::int64_t inputs, int threads,
                        Arena& arena);

// Rows of GGUF blocks: "q4_0", "q4_1" or "q8_0", all parts alike.
struct BlockPart {
    std::int64_t outputs = 0;
    const std::uint8_t* blocks = nullptr;
};
PackedLinear pack_blocks(const std::vector<BlockPart>& parts, std::int64_t inputs, const std::string& precision,
                         int threads,
                        Arena& arena);

// Why rows of a format cannot meet these weights, or an empty string.
std::string reason_against(const PackedLinear& weights, const RowFormat& rows);

}  // namespace tightpack
