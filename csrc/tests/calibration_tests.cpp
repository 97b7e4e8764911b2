// Calibration's kernels on every instruction set, over heap buffers of exactly their size, so that sanitizers
// see what is read or written beside them. (What they compute is checked against float64 and PyTorch by the
// Python tests.)
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>

#include "column_rounding.h"
#include "cpu_features.h"
#include "kernel_table.h"
#include "token_products.h"

namespace {

using tightpack::ColumnRounding;
using tightpack::InstructionSet;
using tightpack::KernelTable;
using tightpack::TokenColumns;

int failures = 0;

void check(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

std::unique_ptr<float[]> numbers(std::mt19937& random, std::int64_t count, float least, float most) {
    std::uniform_real_distribution<float> range(least, most);
    auto values = std::make_unique<float[]>(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) values[static_cast<std::size_t>(i)] = range(random);
    return values;
}

// Columns of ones in bfloat16: each sum is the number of tokens.
void test_token_products(const KernelTable& kernels, const std::string& set) {
    for (const std::int64_t tokens : {1, 6, 37}) {
        for (const std::int64_t width : {1, 16, 50, 112}) {
            const auto count = static_cast<std::size_t>(tokens * width);
            const auto ones = std::make_unique<std::uint16_t[]>(count);
            for (std::size_t i = 0; i < count; ++i) ones[i] = 0x3f80;
            const auto sums = std::make_unique<float[]>(static_cast<std::size_t>(width * width));
            const TokenColumns columns{ones.get(), tokens, width};
            tightpack::add_token_products(kernels, columns, &columns, 2, sums.get());
            bool right = true;
            for (std::int64_t i = 0; i < width * width; ++i) {
                right = right && sums[static_cast<std::size_t>(i)] == static_cast<float>(tokens);
            }
            check(right, "sums of " + std::to_string(width) + " columns, " + set);
        }
    }
}

// With no influence a column's error is that of rounding alone: half a step at most.
void test_round_columns(const KernelTable& kernels, const std::string& set) {
    std::mt19937 random(1);
    for (const std::int64_t columns : {1, 9, 128}) {
        for (const std::int64_t outputs : {1, 16, 83}) {
            const std::int64_t count = columns * outputs;
            const auto state = numbers(random, count, -1, 1), scales = numbers(random, 2 * outputs, .2f, .3f);
            const auto zeros = std::make_unique<float[]>(static_cast<std::size_t>(2 * outputs));
            for (std::int64_t i = 0; i < 2 * outputs; ++i) zeros[static_cast<std::size_t>(i)] = 8;
            const auto pivots = numbers(random, columns, 1, 1), none = numbers(random, columns * columns, 0, 0);
            const auto groups = std::make_unique<std::int32_t[]>(static_cast<std::size_t>(columns));
            for (std::int64_t c = 0; c < columns; ++c) groups[static_cast<std::size_t>(c)] = c % 2;
            const auto codes = numbers(random, count, 0, 1), changes = numbers(random, count, 2, 3);
            ColumnRounding work{};
            work.state = state.get();
            work.columns = columns;
            work.outputs = outputs;
            work.scales = scales.get();
            work.zeros = zeros.get();
            work.group_of_column = groups.get();
            work.bits = 4;
            work.pivots = pivots.get();
            work.influence = none.get();
            work.codes = codes.get();
            work.changes = changes.get();
            tightpack::round_columns(kernels, work, 2);
            bool right = true;
            for (std::int64_t i = 0; i < count; ++i) {
                right = right && std::fabs(changes[static_cast<std::size_t>(i)]) < .151f;
            }
            check(right, std::to_string(columns) + " columns of " + std::to_string(outputs) + ", " + set);
        }
    }
}

}  // namespace

int main() {
    for (const InstructionSet set : tightpack::usable_instruction_sets()) {
        const KernelTable& kernels = tightpack::kernel_table(set);
        const std::string name(tightpack::name(set));
        test_token_products(kernels, name);
        test_round_columns(kernels, name);
    }
    if (failures != 0) {
        std::fprintf(stderr, "%d failed\n", failures);
        return EXIT_FAILURE;
    }
    std::printf("passed\n");
    return EXIT_SUCCESS;
}
