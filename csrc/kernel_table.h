// The kernels of one instruction set, as a table of plain functions.
//
// Each kernels_<set>.cpp compiles the same *.inc files under its own flags and inside its own namespace. Only
// this table leaves it: nothing that a wide translation unit instantiates may carry a name which another also
// instantiates, or the linker would keep one of the two, perhaps the one an older processor cannot run.
#pragma once

#include <array>
#include <cstdint>

#include "attention_kernels.h"
#include "block_formats.h"
#include "column_rounding.h"
#include "cpu_features.h"
#include "packed_linear.h"
#include "rows.h"
#include "sampling_kernels.h"
#include "token_products.h"

namespace tightpack {

// blocks: num_blocks blocks of one format, any alignment. out: num_blocks * elements values. No overlap.
template <class Out>
using DequantizeKernel = void (*)(const std::uint8_t* blocks, std::int64_t num_blocks, Out* out);

// On a row of `width` numbers; what is returned says whether all that went in was finite (for norms, whether its
// squares' sum is) or, for gates, all that came out.
struct RowKernels {
    // out = x / sqrt(mean(x^2) + eps) * weight. out may be x.
    bool (*norm)(const float* x, const float* weight, float eps, std::int64_t width, float* out);
    // out = silu(gate) * up, and with the tanh approximation of GELU.
    bool (*silu_gate)(const float* gate, const float* up, std::int64_t width, float* out);
    bool (*gelu_tanh_gate)(const float* gate, const float* up, std::int64_t width, float* out);
    void (*add)(const float* x, std::int64_t width, float* sum);
    void (*scale)(float scale, std::int64_t width, float* x);
    // x = cap * tanh(x / cap).
    void (*softcap)(float cap, std::int64_t width, float* x);
    bool (*is_finite)(const float* x, std::int64_t width);
};

// expert_kernels.inc says what they do.
struct ExpertKernels {
    bool (*choose)(const float* scores, std::int64_t count, std::int64_t used, bool normalized, float* chosen);
    void (*add_weighted)(const float* weights, const float* const* rows, std::int64_t count, std::int64_t width,
                         float* sum);
};

// token_products.inc says what they do.
struct TokenProductKernels {
    // Panels [first, last) to where they lie among all: out + panel * from.panel_numbers().
    void (*pack)(const TokenColumns& from, std::int64_t first_panel, std::int64_t last_panel,
                 std::uint16_t* out);
    // The sums of TokenProducts::columns_at_a_time columns from first_column, a multiple of it.
    void (*add)(const TokenProducts& work, std::int64_t first_column);
};

struct KernelTable {
    // Indexed by BlockFormat.
    std::array<DequantizeKernel<float>, num_block_formats> dequantize_fp32;
    std::array<DequantizeKernel<std::uint16_t>, num_block_formats> dequantize_bf16;

    // Row `row` of `out` from x, float32 [out.format.width].
    void (*quantize_row)(const float* x, const Rows& out, std::int64_t row);
    // The products of rows and the outputs of panels, given as [first, last) each. Any split of a product over
    // calls gives the same bits. Rows of int8 need weights of uint4 or uint8 whose groups (if they have any)
    // are multiples of the rows'.
    void (*linear)(const PackedLinear& weights, const Rows& rows, std::int64_t first_row, std::int64_t last_row,
                   std::int64_t first_panel, std::int64_t last_panel, const LinearOutput& out);
    // The dequantized weights of one output, float32 [weights.inputs].
    void (*unpack_output)(const PackedLinear& weights, std::int64_t output, float* out);

    RowKernels row;
    ExpertKernels experts;
    void (*attend)(const AttentionTile& work);
    void (*finish_attention)(const AttentionFinish& work);
    void (*rotate_and_store)(const StoreRun& run);
    SamplingKernels sampling;
    TokenProductKernels token_products;
    // Of outputs [first, last). column_rounding.inc says what it does.
    void (*round_columns)(const ColumnRounding& work, std::int64_t first_output, std::int64_t last_output);
};

namespace portable {
extern const KernelTable kernels;
}
#if defined(TIGHTPACK_X86_KERNELS)
namespace avx2 {
extern const KernelTable kernels;
}
namespace avx512_vnni {
extern const KernelTable kernels;
}
namespace avx512_bf16 {
extern const KernelTable kernels;
}
#endif

const KernelTable& kernel_table(InstructionSet set);

}  // namespace tightpack
