// Which instruction sets this machine can run, found at run time.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tightpack {

// One value a kernel translation unit; a larger value is preferred where it runs.
//   portable     what the compiler may assume of the architecture: SSE2 on x86-64, NEON on AArch64
//   avx2         AVX2, FMA and F16C (x86-64-v3)
//   avx512_vnni  avx2 and AVX-512 F, BW, DQ, VL and VNNI
//   avx512_bf16  avx512_vnni and AVX512-BF16
enum class InstructionSet { portable, avx2, avx512_vnni, avx512_bf16 };

std::string_view name(InstructionSet set);

// The sets that were compiled in and that processor and operating system support, best first. Never empty:
// portable is always last.
std::vector<InstructionSet> usable_instruction_sets();

// The set of that name, or the best usable one for "auto". Throws std::invalid_argument, naming the usable
// sets, for a set this machine cannot run.
InstructionSet select_instruction_set(std::string_view wanted);

}  // namespace tightpack
