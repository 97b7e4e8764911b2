#include "dequantize.h"

#include <stdexcept>
#include <string>

#include "kernel_table.h"
#include "parallel_for.h"

namespace tightpack {
namespace {

// Elements a thread takes at a time: long enough (some 50 us) that starting threads and sharing a counter
// cost nothing beside it, and a multiple of every block.
constexpr std::int64_t grain_elements = 1 << 18;

template <class Out>
void dequantize_with(DequantizeKernel<Out> kernel, const BlockShape& shape, const std::uint8_t* blocks,
                     std::int64_t count, int threads, Out* out) {
    parallel_for(count / shape.elements, grain_elements / shape.elements, threads,
                 [&](std::int64_t first, std::int64_t last) {
                     kernel(blocks + first * shape.bytes, last - first, out + first * shape.elements);
                 });
}

}  // namespace

void check_dequantize(BlockFormat format, std::size_t num_bytes, std::int64_t count, int threads) {
    const BlockShape& shape = block_shape(format);
    const std::string precision(shape.precision);
    if (count < 0 || count % shape.elements != 0) {
        throw std::invalid_argument("count " + std::to_string(count) + " is not a multiple of the " +
                                    std::to_string(shape.elements) + " elements of a " + precision +
                                    " block");
    }
    const std::uint64_t num_blocks = static_cast<std::uint64_t>(count / shape.elements);
    const std::uint64_t bytes = static_cast<std::uint64_t>(shape.bytes);
    if (num_bytes % bytes != 0 || num_bytes / bytes != num_blocks) {
        throw std::invalid_argument("data has " + std::to_string(num_bytes) + " bytes, but " +
                                    std::to_string(count) + " elements of " + precision + " are " +
                                    std::to_string(num_blocks) + " blocks of " + std::to_string(bytes) +
                                    " bytes");
    }
    if (threads < 1 || threads > max_threads) {
        throw std::invalid_argument("threads " + std::to_string(threads) + " is not within 1 .. " +
                                    std::to_string(max_threads));
    }
}

void dequantize(BlockFormat format, InstructionSet set, const std::uint8_t* blocks, std::int64_t count,
                int threads, float* out) {
    const auto kernel = kernel_table(set).dequantize_fp32[static_cast<std::size_t>(format)];
    dequantize_with(kernel, block_shape(format), blocks, count, threads, out);
}

void dequantize(BlockFormat format, InstructionSet set, const std::uint8_t* blocks, std::int64_t count,
                int threads, std::uint16_t* out) {
    const auto kernel = kernel_table(set).dequantize_bf16[static_cast<std::size_t>(format)];
    dequantize_with(kernel, block_shape(format), blocks, count, threads, out);
}

}  // namespace tightpack
