// The block-quantized formats of GGUF, as far as this program reads them.
//
// A tensor is a sequence of blocks, row by row; a block holds `elements` consecutive weights of one row in
// `bytes` bytes, little-endian, with no padding. The layouts are those of ggml's quantization structs; what a
// block means is stated once, in dequantize_kernels.inc.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>

namespace tightpack {

static_assert(std::endian::native == std::endian::little, "GGUF blocks are read as they lie: little-endian");

enum class BlockFormat : std::uint8_t { fp16, bf16, q4_0, q4_1, q5_0, q8_0, q4_k, q6_k };

struct BlockShape {
    std::string_view precision;
    std::int64_t elements;
    std::int64_t bytes;
};

inline constexpr std::size_t num_block_formats = 8;

// In the order of BlockFormat.
inline constexpr std::array<BlockShape, num_block_formats> block_shapes{{
    {"fp16", 1, 2},
    {"bf16", 1, 2},
    {"q4_0", 32, 2 + 16},
    {"q4_1", 32, 2 + 2 + 16},
    {"q5_0", 32, 2 + 4 + 16},
    {"q8_0", 32, 2 + 32},
    {"q4_k", 256, 2 + 2 + 12 + 128},
    {"q6_k", 256, 128 + 64 + 16 + 2},
}};

constexpr const BlockShape& block_shape(BlockFormat format) {
    return block_shapes[static_cast<std::size_t>(format)];
}

// Throws std::invalid_argument, naming the known precisions.
BlockFormat block_format(std::string_view precision);

}  // namespace tightpack
