// Dequantization of whole tensors: checked, and split over threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "block_formats.h"
#include "cpu_features.h"

namespace tightpack {

inline constexpr int max_threads = 1024;

// Throws std::invalid_argument, naming the numbers, unless num_bytes is what count elements of the format
// take and threads is within 1 .. max_threads.
void check_dequantize(BlockFormat format, std::size_t num_bytes, std::int64_t count, int threads);

// blocks: as checked above, any alignment. out: count values; bfloat16 as its bits. The result does not
// depend on threads or set.
void dequantize(BlockFormat format, InstructionSet set, const std::uint8_t* blocks, std::int64_t count,
                int threads, float* out);
void dequantize(BlockFormat format, InstructionSet set, const std::uint8_t* blocks, std::int64_t count,
                int threads, std::uint16_t* out);

}  // namespace tightpack
