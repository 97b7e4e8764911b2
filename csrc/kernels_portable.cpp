#define TIGHTPACK_INSTRUCTION_SET portable
#include "kernels.inc"
