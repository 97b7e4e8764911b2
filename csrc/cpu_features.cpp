#include "cpu_features.h"

#include <cstdint>
#include <stdexcept>

#if defined(TIGHTPACK_X86_KERNELS)
#include <cpuid.h>
#endif

namespace tightpack {
namespace {

struct X86Support {
    bool avx2 = false;
    bool avx512_vnni = false;
    bool avx512_bf16 = false;
};

#if defined(TIGHTPACK_X86_KERNELS)

constexpr bool has_bits(std::uint64_t value, std::uint64_t bits) {
    return (value & bits) == bits;
}

constexpr std::uint32_t bit(int position) {
    return std::uint32_t{1} << position;
}

// XCR0: the register state that the operating system saves at a context switch. The processor's own flags are
// not enough: under a kernel that does not save the wide registers, using them faults.
std::uint64_t enabled_register_state() {
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
}

// Asked of cpuid by hand (bit positions: Intel SDM volume 2, CPUID), since the names that
// __builtin_cpu_supports accepts differ between the compilers that must build this.
X86Support detect_x86() {
    X86Support found;
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return found;
    const std::uint32_t osxsave = bit(27), avx = bit(28), fma = bit(12), f16c = bit(29);
    if (!has_bits(ecx, osxsave | avx | fma | f16c)) return found;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return found;

    const std::uint64_t state = enabled_register_state();
    const std::uint64_t ymm_state = 0x06, zmm_state = 0xe6;
    const std::uint32_t avx2 = bit(5);
    found.avx2 = has_bits(ebx, avx2) && has_bits(state, ymm_state);

    const std::uint32_t f = bit(16), dq = bit(17), bw = bit(30), vl = bit(31);
    const std::uint32_t vnni = bit(11);
    found.avx512_vnni =
        found.avx2 && has_bits(ebx, f | dq | bw | vl) && has_bits(ecx, vnni) && has_bits(state, zmm_state);

    const std::uint32_t bf16 = bit(5);
    found.avx512_bf16 =
        found.avx512_vnni && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && has_bits(eax, bf16);
    return found;
}

#else

X86Support detect_x86() {
    return {};
}

#endif

}  // namespace

std::string_view name(InstructionSet set) {
    switch (set) {
        case InstructionSet::avx512_bf16:
            return "avx512_bf16";
        case InstructionSet::avx512_vnni:
            return "avx512_vnni";
        case InstructionSet::avx2:
            return "avx2";
        case InstructionSet::portable:
            break;
    }
    return "portable";
}

std::vector<InstructionSet> usable_instruction_sets() {
    static const X86Support x86 = detect_x86();
    std::vector<InstructionSet> sets;
    if (x86.avx512_bf16) sets.push_back(InstructionSet::avx512_bf16);
    if (x86.avx512_vnni) sets.push_back(InstructionSet::avx512_vnni);
    if (x86.avx2) sets.push_back(InstructionSet::avx2);
    sets.push_back(InstructionSet::portable);
    return sets;
}

InstructionSet select_instruction_set(std::string_view wanted) {
    const std::vector<InstructionSet> usable = usable_instruction_sets();
    if (wanted == "auto") return usable.front();
    std::string choices = "auto";
    for (const InstructionSet set : usable) {
        if (wanted == name(set)) return set;
        choices.append(", ").append(name(set));
    }
    throw std::invalid_argument("instruction_set \"" + std::string(wanted) +
                                "\" is not usable on this machine; usable here: " + choices);
}

}  // namespace tightpack
