// Columns rounded in turn, each change passed on to those not yet rounded: the inner loop of GPTQ and of
// coordinate descent.
#pragma once

#include <cstdint>

namespace tightpack {

// Columns of neighbouring inputs; matrices lie input by input, [columns][outputs] of float32.
struct ColumnRounding {
    const float* state;  // what a column is rounded from: column_rounding.inc says how
    const float* held;   // the values of now, or nullptr
    std::int64_t columns;
    std::int64_t outputs;
    // The grid of group_of_column[c]: [groups][outputs]. zeros: nullptr of a symmetric grid.
    const float* scales;
    const float* zeros;
    const std::int32_t* group_of_column;  // [columns]
    int bits;
    const float* pivots;     // [columns]
    const float* influence;  // [columns][columns]: of a row's column on the column; read above the diagonal
    float* codes;
    float* changes;

    static constexpr std::int64_t most_columns = 128;
};

struct KernelTable;

// Codes and changes of every output, which do not touch each other: the same whatever the threads.
void round_columns(const KernelTable& kernels, const ColumnRounding& work, int threads);

}  // namespace tightpack
