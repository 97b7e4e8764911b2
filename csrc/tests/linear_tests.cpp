// Packing and products in heap buffers of exactly their size, for the sanitizers to watch; every instruction set
// against the portable one. (What the numbers should be is checked against numpy by the Python tests.)
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernel_table.h"
#include "pack_linear.h"

namespace {

using namespace tightpack;

int failures = 0;
Arena arena;

void check(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

std::mt19937 randomness(7);

std::vector<float> random_floats(std::size_t count, float scale) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(count);
    for (float& value : values) value = normal(randomness);
    return values;
}

std::vector<std::uint8_t> random_bytes(std::size_t count, int below) {
    std::vector<std::uint8_t> values(count);
    for (auto& value : values) value = static_cast<std::uint8_t>(randomness() % static_cast<unsigned>(below));
    return values;
}

std::vector<float> product(const PackedLinear& w, const RowFormat& format, const std::vector<float>& x,
                           std::int64_t count, InstructionSet set) {
    const KernelTable& kernels = kernel_table(set);
    RowBuffer buffer;
    const Rows rows = buffer.resize(format, count);
    for (std::int64_t row = 0; row < count; ++row) kernels.quantize_row(x.data() + row * format.width, rows, row);
    std::vector<float> values(static_cast<std::size_t>(count * w.outputs), 1.0f);
    const std::vector<float> bias(static_cast<std::size_t>(w.outputs), 0.5f);
    LinearOutput out;
    out.values = values.data();
    out.stride = w.outputs;
    out.accumulate = true;
    out.bias = bias.data();
    const std::int64_t half = w.panels() / 2;
    kernels.linear(w, rows, 0, count, 0, half, out);
    kernels.linear(w, rows, 0, count, half, w.panels(), out);
    return values;
}

void compare(const PackedLinear& w, const RowFormat& format, const std::string& what) {
    check(reason_against(w, format).empty(), what + ": " + reason_against(w, format));
    for (const std::int64_t count : {1, 2, 3, 4, 7, 8, 65}) {
        const auto x = random_floats(static_cast<std::size_t>(count * w.inputs), 2);
        const auto want = product(w, format, x, count, InstructionSet::portable);
        for (const InstructionSet set : usable_instruction_sets()) {
            const auto got = product(w, format, x, count, set);
            for (std::size_t i = 0; i < got.size(); ++i) {
                if (std::fabs(got[i] - want[i]) > 1e-3f * (1 + std::fabs(want[i]))) {
                    check(false, what + " on " + std::string(name(set)));
                    return;
                }
            }
        }
    }
}

void test_integers(int bits, std::int64_t outputs, std::int64_t inputs, std::int64_t group, int offsets) {
    const auto codes = random_bytes(static_cast<std::size_t>(outputs * inputs), bits == 4 ? 16 : 256);
    const auto count = static_cast<std::size_t>(outputs * (inputs / group));
    const std::vector<float> scales(count, 0x1p-6f), minimums(count, -0.25f);
    const auto zeros = random_bytes(count, bits == 4 ? 16 : 256);
    const IntPart part{outputs, codes.data(), scales.data(), offsets == 1 ? zeros.data() : nullptr,
                       offsets == 2 ? minimums.data() : nullptr};
    const PackedLinear w = pack_int({part}, inputs, bits, group, 2, arena);
    RowFormat format;
    format.codes = RowFormat::Codes::int8;
    format.width = inputs;
    format.group = group == inputs && offsets != 0 ? 8 : group;
    format.weight_offset = offsets != 0 ? 0 : bits == 4 ? 8 : 128;
    const std::string what = std::to_string(bits) + " bits, " + std::to_string(inputs) + " inputs, groups of " +
                             std::to_string(group) + ", offsets " + std::to_string(offsets);
    compare(w, format, what);
    format.outlier_threshold = 3;
    compare(w, format, what + ", outliers");
    RowFormat exact;
    exact.width = inputs;
    compare(w, exact, what + ", bf16 rows");
}

void test_floats() {
    const auto dense = random_floats(21 * 50, 1);
    RowFormat format;
    format.width = 50;
    compare(pack_dense({{21, DensePart::Type::float32, dense.data()}}, 50, 1, arena), format, "dense");
    const auto codes = random_bytes(21 * 50, 120);
    const std::vector<float> scales(21, 0.01f);
    format.group = 50;
    format.fp8 = true;
    compare(pack_fp8({{21, codes.data(), scales.data(), 1, 50}}, 50, 1, arena), format, "fp8");
}

void test_blocks() {
    for (const auto& [precision, bytes] : {std::pair{"q4_0", 18}, {"q4_1", 20}, {"q8_0", 34}}) {
        auto blocks = random_bytes(static_cast<std::size_t>(19 * 2 * bytes), 256);
        for (std::size_t i = 0; i < blocks.size(); i += static_cast<std::size_t>(bytes)) {
            blocks[i] = 0;
            blocks[i + 1] = 0x28;  // 2^-5 in fp16
            if (bytes == 20) blocks[i + 3] = 0xb0;
        }
        const PackedLinear w = pack_blocks({{19, blocks.data()}}, 64, precision, 1, arena);
        RowFormat format;
        format.codes = RowFormat::Codes::int8;
        format.width = 64;
        format.group = 32;
        format.weight_offset = bytes == 20 ? 0 : bytes == 34 ? 128 : 8;
        compare(w, format, precision);
        std::vector<float> row(64);
        for (const InstructionSet set : usable_instruction_sets()) kernel_table(set).unpack_output(w, 18, row.data());
    }
}

}  // namespace

int main() {
    for (const int bits : {4, 8}) {
        for (const int offsets : {0, 1, 2}) {
            test_integers(bits, 35, 128, 64, offsets);
            test_integers(bits, 35, 160, 32, offsets);  // four groups at a time, and one more
            test_integers(bits, 5, 40, 40, offsets);
        }
    }
    test_floats();
    test_blocks();
    if (failures != 0) {
        std::fprintf(stderr, "%d failed\n", failures);
        return EXIT_FAILURE;
    }
    std::printf("passed on:");
    for (const InstructionSet set : usable_instruction_sets()) std::printf(" %s", std::string(name(set)).c_str());
    std::printf("\n");
    return EXIT_SUCCESS;
}
