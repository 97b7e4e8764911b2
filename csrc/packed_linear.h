// Weights in the layout that the kernels stream.
#pragma once

#include <cstdint>

#include "aligned_buffer.h"
#include "rows.h"

namespace tightpack {

// A weight matrix [outputs, inputs], in panels of 16 outputs whose codes lie in the order in which they are used.
// With N outputs and K inputs, both rounded up (N to 16, K to `depth`), and G inputs a group:
//
//   uint4  byte(n, k) = (n/16 * K/8 + k/8) * 64 + n%16 * 4 + k%4, low nibble for k/4 even, high for odd
//   uint8  byte(n, k) = (n/16 * K/4 + k/4) * 64 + n%16 * 4 + k%4
//   fp8    byte(n, k) = (n/16 * K/2 + k/2) * 32 + n%16 * 2 + k%2
//   bf16   element(n, k) = (n/16 * K/2 + k/2) * 32 + n%16 * 2 + k%2
//   fp16 scale, uint8 zero-point, fp16 minimum (n, k) = (n/16 * K/G + k/G) * 16 + n%16
//
// uint4 and uint8: W = scale * (code - zero), or scale * code + minimum; symmetric codes are raised by 8 or 128,
// which is then the zero-point of all. fp8: E4M3 codes; W = scale * code.
struct PackedLinear {
    enum class Codes { uint4, uint8, fp8, bf16 };
    enum class Offsets { symmetric, zeros, minimums };
    static constexpr std::int64_t panel = 16;

    Codes codes = Codes::bf16;
    Offsets offsets = Offsets::symmetric;
    std::int64_t outputs = 0;
    std::int64_t inputs = 0;
    // Inputs that share a scale; padded_inputs() for one scale an output, kept in channel_scales alone.
    std::int64_t group = 0;
    // Scales and minimums are kept divided by this power of two, so that fp16 holds small ones exactly.
    float scale_unit = 1;

    AlignedBuffer data;
    AlignedBuffer group_scales;    // fp16
    AlignedBuffer channel_scales;  // float32 [N]; there when there are no group_scales, and codes are not bf16
    AlignedBuffer zeros;           // uint8
    AlignedBuffer minimums;        // fp16

    std::int64_t depth() const { return codes == Codes::uint4 ? 8 : codes == Codes::uint8 ? 4 : 2; }
    std::int64_t padded_inputs() const { return (inputs + depth() - 1) / depth() * depth(); }
    std::int64_t panels() const { return (outputs + panel - 1) / panel; }
    // Bytes from one panel's codes to the next one's.
    std::int64_t panel_bytes() const {
        const std::int64_t elements = padded_inputs() * panel;
        return codes == Codes::uint4 ? elements / 2 : codes == Codes::bf16 ? elements * 2 : elements;
    }
    std::int64_t groups() const { return group_scales.size() == 0 ? 0 : padded_inputs() / group; }
    std::size_t num_bytes() const {
        return data.size() + group_scales.size() + channel_scales.size() + zeros.size() + minimums.size();
    }
};

// What a linear does with its sums: out = sum (+ bias), or out += sum (+ bias).
struct LinearOutput {
    float* values = nullptr;   // row 0, output 0
    std::int64_t stride = 0;   // from row to row
    bool accumulate = false;
    const float* bias = nullptr;
};

}  // namespace tightpack
