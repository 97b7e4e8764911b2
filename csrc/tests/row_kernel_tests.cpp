// Tests of the row kernels without Python: rows lie in heap buffers of exactly their size, so that the
// address sanitizer sees a number read or written too many; values are checked against double precision, and
// the bits of one instruction set against another's.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernel_table.h"

namespace {

using namespace tightpack;
using Row = std::vector<float>;

int failures = 0;

void check(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

Row random_row(std::mt19937& random, std::size_t width, float scale) {
    std::normal_distribution<float> normal(0, scale);
    Row row(width);
    for (float& number : row) number = normal(random);
    return row;
}

bool close(const Row& found, const std::vector<double>& expected, double relative, double absolute) {
    for (std::size_t i = 0; i < found.size(); ++i) {
        const double error = std::fabs(found[i] - expected[i]);
        if (!(error <= relative * std::fabs(expected[i]) + absolute)) return false;
    }
    return true;
}

// One function on every set: the same bits, and close to the oracle.
void test_all_sets(const std::string& what, const std::function<Row(const RowKernels&)>& compute,
                   const std::vector<double>& oracle, double relative, double absolute) {
    const Row expected = compute(kernel_table(InstructionSet::portable).row);
    check(close(expected, oracle, relative, absolute), what + " in double precision");
    for (const InstructionSet set : usable_instruction_sets()) {
        const Row found = compute(kernel_table(set).row);
        check(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0,
              what + ", " + std::string(name(set)) + " as portable");
    }
}

void test_rows(std::size_t width) {
    std::mt19937 random(static_cast<unsigned>(width));
    const Row x = random_row(random, width, 20), y = random_row(random, width, 3);
    const auto count = static_cast<std::int64_t>(width);
    const std::string of = " of " + std::to_string(width);
    const auto oracle = [&](const std::function<double(double, double)>& f) {
        std::vector<double> values(width);
        for (std::size_t i = 0; i < width; ++i) values[i] = f(x[i], y[i]);
        return values;
    };

    double squares = 0;
    for (const float number : x) squares += static_cast<double>(number) * number;
    const double size = std::sqrt(squares / static_cast<double>(width) + 1e-5);
    test_all_sets(
        "norm" + of,
        [&](const RowKernels& kernels) {
            Row out(width);
            check(kernels.norm(x.data(), y.data(), 1e-5f, count, out.data()), "a finite row passes");
            return out;
        },
        oracle([&](double a, double b) { return a / size * b; }), 1e-6, 0);

    const auto silu = [](double a, double b) { return a / (1 + std::exp(-a)) * b; };
    test_all_sets(
        "silu" + of,
        [&](const RowKernels& kernels) {
            Row out(width);
            check(kernels.silu_gate(x.data(), y.data(), count, out.data()), "a finite row passes");
            return out;
        },
        oracle(silu), 1e-6, 1e-34);

    const auto gelu = [](double a, double b) {
        return a / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (a + 0.044715 * a * a * a))) * b;
    };
    test_all_sets(
        "gelu" + of,
        [&](const RowKernels& kernels) {
            Row out(width);
            check(kernels.gelu_tanh_gate(x.data(), y.data(), count, out.data()), "a finite row passes");
            return out;
        },
        // The exponent reaches 87, and with it what a rounded exponent costs.
        oracle(gelu), 2e-5, 1e-34);

    test_all_sets(
        "softcap" + of,
        [&](const RowKernels& kernels) {
            Row out = x;
            kernels.softcap(30, count, out.data());
            return out;
        },
        oracle([](double a, double) { return 30 * std::tanh(a / 30); }), 1e-6, 1e-5);

    test_all_sets(
        "scale and add" + of,
        [&](const RowKernels& kernels) {
            Row out = x;
            kernels.scale(0.75f, count, out.data());
            kernels.add(y.data(), count, out.data());
            return out;
        },
        oracle([](double a, double b) { return 0.75 * a + b; }), 1e-6, 1e-6);
}

// Wherever in a row it stands.
void test_what_is_not_finite(std::size_t width) {
    const auto count = static_cast<std::int64_t>(width);
    for (const InstructionSet set : usable_instruction_sets()) {
        const RowKernels& kernels = kernel_table(set).row;
        const std::string on = " on " + std::string(name(set));
        for (const float bad :
             {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
              std::numeric_limits<float>::quiet_NaN()}) {
            for (std::size_t at = 0; at < width; ++at) {
                const Row ones(width, 1.0f);
                Row x = ones, out(width);
                x[at] = bad;
                check(!kernels.is_finite(x.data(), count), "is_finite sees it" + on);
                check(!kernels.norm(x.data(), ones.data(), 1e-5f, count, out.data()), "norm sees it" + on);
                check(!kernels.silu_gate(ones.data(), x.data(), count, out.data()), "silu sees it" + on);
                check(!kernels.gelu_tanh_gate(ones.data(), x.data(), count, out.data()), "gelu sees it" + on);
            }
        }
        const Row largest(width, std::numeric_limits<float>::max());
        check(kernels.is_finite(largest.data(), count), "the largest number is finite" + on);
    }
}

}  // namespace

int main() {
    for (const std::size_t width : {1, 3, 4, 8, 15, 16, 17, 31, 33, 64, 576, 1000}) test_rows(width);
    for (const std::size_t width : {1, 16, 37}) test_what_is_not_finite(width);
    if (failures != 0) {
        std::fprintf(stderr, "%d failed\n", failures);
        return EXIT_FAILURE;
    }
    std::printf("passed\n");
    return EXIT_SUCCESS;
}
