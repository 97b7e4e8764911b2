#define TIGHTPACK_INSTRUCTION_SET avx2
#include "kernels.inc"
