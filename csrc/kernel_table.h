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
#include "cpu_features.h"

namespace tightpack {

// blocks: num_blocks blocks of one format, any alignment. out: num_blocks * elements values. No overlap.
template <class Out>
using DequantizeKernel = void (*)(const std::uint8_t* blocks, std::int64_t num_blocks, Out* out);

struct KernelTable {
    // Indexed by BlockFormat.
    std::array<DequantizeKernel<float>, num_block_formats> dequantize_fp32;
    std::array<DequantizeKernel<std::uint16_t>, num_block_formats> dequantize_bf16;

    void (*attend)(const AttentionTile& work);
    void (*finish_attention)(const AttentionFinish& work);
    void (*rotate_and_store)(const StoreRun& run);
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
