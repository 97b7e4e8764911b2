// Python bindings: arguments are checked here, the interpreter lock is released around the work.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings.h"
#include "cpu_features.h"
#include "dequantize.h"

void bind_attention(nanobind::module_& m);  // attention_bindings.cpp

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Out>
nb::object dequantize_blocks(const Bytes& data, const std::string& precision, std::int64_t count, int threads,
                             const std::string& instruction_set, const char* dtype) {
    const tightpack::BlockFormat format = tightpack::block_format(precision);
    const tightpack::InstructionSet set = tightpack::select_instruction_set(instruction_set);
    tightpack::check_dequantize(format, data.nbytes(), count, threads);
    // numpy's allocator asks for huge pages, and touching fresh pages is most of the time a large tensor
    // takes.
    nb::object result = nb::module_::import_("numpy").attr("empty")(count, dtype);
    Out* out = nb::cast<nb::ndarray<Out, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(result).data();
    {
        const nb::gil_scoped_release unlocked;
        tightpack::dequantize(format, set, data.data(), count, threads, out);
    }
    return result;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const tightpack::InstructionSet set : tightpack::usable_instruction_sets()) {
        names.emplace_back(tightpack::name(set));
    }
    return names;
}

}  // namespace

NB_MODULE(_native, m) {
    // Whoever holds a model to the end of the program leaks nothing that matters.
    nb::set_leak_warnings(false);
    m.doc() = "Compiled CPU kernels, chosen at run time for the instruction set of this machine.";

    bind_attention(m);

    m.def("instruction_sets", &instruction_sets,
          "The instruction sets usable here, best first; the last is always \"portable\".");

    m.def(
        "dequantize_blocks",
        [](const Bytes& data, const std::string& precision, std::int64_t count, int threads,
           const std::string& instruction_set) {
            return dequantize_blocks<float>(data, precision, count, threads, instruction_set, "float32");
        },
        "data"_a.noconvert(), "precision"_a, "count"_a, "threads"_a = 1, nb::kw_only(),
        "instruction_set"_a = "auto",
        nb::sig("def dequantize_blocks(data: numpy.typing.NDArray[numpy.uint8], precision: str, count: int, "
                "threads: int = 1, *, instruction_set: str = 'auto') -> numpy.typing.NDArray[numpy.float32]"),
        R"(GGUF blocks to float32, bit for bit as the gguf package dequantizes them.

data: uint8 [bytes], contiguous, any alignment, may be read-only; the blocks as they lie in the file.
precision: "fp16", "bf16", "q4_0", "q4_1", "q5_0", "q8_0", "q4_k" or "q6_k".
count: elements in data, a multiple of the block's (1, 32 or 256).
threads: 1 .. 1024, the caller's included. The interpreter lock is released meanwhile.
instruction_set: "auto", or one of instruction_sets(); all give the same bits.

Returns float32 [count]. Raises ValueError where the numbers do not fit each other or a name is unknown,
TypeError where data is no contiguous uint8 vector.)");

    m.def(
        "dequantize_blocks_bf16",
        [](const Bytes& data, const std::string& precision, std::int64_t count, int threads,
           const std::string& instruction_set) {
            return dequantize_blocks<std::uint16_t>(data, precision, count, threads, instruction_set,
                                                    "uint16");
        },
        "data"_a.noconvert(), "precision"_a, "count"_a, "threads"_a = 1, nb::kw_only(),
        "instruction_set"_a = "auto",
        nb::sig("def dequantize_blocks_bf16(data: numpy.typing.NDArray[numpy.uint8], precision: str, "
                "count: int, threads: int = 1, *, instruction_set: str = 'auto') -> "
                "numpy.typing.NDArray[numpy.uint16]"),
        R"(GGUF blocks to bfloat16: dequantize_blocks, each value rounded once to nearest, ties to even.

Arguments and errors as of dequantize_blocks. Returns the bits as uint16 [count]; view them as
ml_dtypes.bfloat16. A NaN stays a NaN; bf16 input is copied unchanged.)");

    tightpack::bind_calibration(m);
    tightpack::bind_linears(m);
    tightpack::bind_program(m);
    tightpack::bind_sampler(m);
}
