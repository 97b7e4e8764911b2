#include "column_rounding.h"

#include "kernel_table.h"
#include "parallel_for.h"

namespace tightpack {
namespace {

// A multiple of every set's lanes, and short enough that threads end together.
constexpr std::int64_t outputs_at_a_time = 64;

}  // namespace

void round_columns(const KernelTable& kernels, const ColumnRounding& work, int threads) {
    parallel_for(work.outputs, outputs_at_a_time, threads, [&](std::int64_t first, std::int64_t last) {
        kernels.round_columns(work, first, last);
    });
}

}  // namespace tightpack
