#include "kernel_table.h"

namespace tightpack {

const KernelTable& kernel_table(InstructionSet set) {
    switch (set) {
#if defined(TIGHTPACK_X86_KERNELS)
        case InstructionSet::avx512_bf16:
            return avx512_bf16::kernels;
        case InstructionSet::avx512_vnni:
            return avx512_vnni::kernels;
        case InstructionSet::avx2:
            return avx2::kernels;
#endif
        default:
            return portable::kernels;
    }
}

}  // namespace tightpack
