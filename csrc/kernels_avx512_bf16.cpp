#define TIGHTPACK_INSTRUCTION_SET avx512_bf16
#include "kernels.inc"
