// The input of a linear, a row a token, rounded as the linear wants it.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"

namespace tightpack {

// What becomes of a row x of `width` float32 numbers.
struct RowFormat {
    enum class Codes {
        int8,  // round(x / scale), ties to even, in -127 .. 127, or of 255 steps in -128 .. 127
        bf16,  // x / scale rounded to bfloat16, or, with fp8, to E4M3 (saturating at 448) and kept as bfloat16
    };

    Codes codes = Codes::bf16;
    std::int64_t width = 0;
    // Neighbouring numbers that share a scale; width for one scale a row; 0 for none at all (plain bf16).
    std::int64_t group = 0;
    bool fp8 = false;
    // 0: dynamic, the group's largest magnitude over half the steps or 448 (1 where all are 0).
    float static_scale = 0;
    // Of int8: 254 or 255.
    std::int32_t steps = 254;
    // Above 0: numbers of at least this magnitude are taken out of the row first, and kept exactly (LLM.int8,
    // Dettmers et al. 2022).
    float outlier_threshold = 0;
    // What the weights' codes have been raised by to be unsigned (8 or 128), which starts make good; 0 for
    // weights with zero-points or minimums, which scaled_sums make good.
    std::int32_t weight_offset = 0;

    // Rows lie this many codes apart: whole cache lines, zeros behind the last.
    std::int64_t stride() const {
        const std::int64_t line = codes == Codes::int8 ? 64 : 32;
        return (width + line - 1) / line * line;
    }
    std::int64_t groups() const { return group == 0 ? 0 : (width + group - 1) / group; }
    bool operator==(const RowFormat&) const = default;
};

// Rows in a format. Of each row: codes [stride]; scales [groups]; starts [groups], -weight_offset times the sum
// of the group's codes; scaled_sums [groups], the sum of the codes times the scale.
struct Rows {
    RowFormat format;
    std::int8_t* int8_codes = nullptr;
    std::uint16_t* bf16_codes = nullptr;
    float* scales = nullptr;
    std::int32_t* starts = nullptr;
    float* scaled_sums = nullptr;
    // Of each row: [2, width], the row without its outliers and then those in order; their places [width]; and
    // how many there are.
    float* outliers = nullptr;
    std::int32_t* outlier_places = nullptr;
    std::int32_t* outlier_counts = nullptr;
};

// Memory for rows, kept between steps and grown as needed.
class RowBuffer {
public:
    // Room for `count` rows of the format; what was there is lost.
    Rows resize(const RowFormat& format, std::int64_t count);

private:
    AlignedBuffer memory_;
};

}  // namespace tightpack
