#define TIGHTPACK_INSTRUCTION_SET avx512_vnni
#include "kernels.inc"
