#include "rows.h"

namespace tightpack {
namespace {

// Where the next array starts: every array at a cache line of its own.
std::size_t after(std::size_t offset, std::size_t bytes) {
    return (offset + bytes + 63) / 64 * 64;
}

}  // namespace

Rows RowBuffer::resize(const RowFormat& format, std::int64_t count) {
    const bool integers = format.codes == RowFormat::Codes::int8, outliers = format.outlier_threshold > 0;
    const auto numbers = [&](std::int64_t a_row) { return static_cast<std::size_t>(count * a_row); };
    const std::size_t codes = 0;
    const std::size_t scales = after(codes, numbers(format.stride()) * (integers ? 1 : 2));
    const std::size_t starts = after(scales, numbers(format.groups()) * 4);
    const std::size_t sums = after(starts, integers ? numbers(format.groups()) * 4 : 0);
    const std::size_t values = after(sums, integers ? numbers(format.groups()) * 4 : 0);
    const std::size_t places = after(values, outliers ? numbers(2 * format.width) * 4 : 0);
    const std::size_t counts = after(places, outliers ? numbers(format.width) * 4 : 0);
    const std::size_t end = after(counts, outliers ? numbers(1) * 4 : 0);
    if (memory_.size() < end) memory_ = AlignedBuffer(end);

    std::byte* memory = memory_.as();
    Rows rows;
    rows.format = format;
    if (integers) {
        rows.int8_codes = reinterpret_cast<std::int8_t*>(memory + codes);
    } else {
        rows.bf16_codes = reinterpret_cast<std::uint16_t*>(memory + codes);
    }
    rows.scales = reinterpret_cast<float*>(memory + scales);
    rows.starts = reinterpret_cast<std::int32_t*>(memory + starts);
    rows.scaled_sums = reinterpret_cast<float*>(memory + sums);
    if (outliers) {
        rows.outliers = reinterpret_cast<float*>(memory + values);
        rows.outlier_places = reinterpret_cast<std::int32_t*>(memory + places);
        rows.outlier_counts = reinterpret_cast<std::int32_t*>(memory + counts);
    }
    return rows;
}

}  // namespace tightpack
