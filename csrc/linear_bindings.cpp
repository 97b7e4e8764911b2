#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "array_arguments.h"
#include "bindings.h"
#include "kernel_table.h"
#include "pack_linear.h"
#include "parallel_for.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tightpack {
namespace {

// That all parts are products of the same input.
void check_inputs(std::int64_t found, std::int64_t& inputs) {
    if (inputs == 0) inputs = found;
    if (found != inputs || inputs == 0) {
        refuse("parts have " + std::to_string(inputs) + " and " + std::to_string(found) + " inputs");
    }
}

// float32, float16, or the bits of bfloat16 as uint16.
DensePart::Type dense_type(const AnyMatrix& values) {
    if (values.dtype() == nb::dtype<float>()) return DensePart::Type::float32;
    if (values.dtype() == nb::dtype<std::uint16_t>()) return DensePart::Type::bfloat16;
    if (values.dtype().code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) &&
        values.dtype().bits == 16) {
        return DensePart::Type::float16;
    }
    refuse("values must be float32, float16, or uint16 with the bits of bfloat16");
}

PackedLinear bound_pack_dense(const std::vector<AnyMatrix>& matrices, int threads, Arena* arena) {
    check_threads(threads);
    Arena own;
    std::vector<DensePart> parts;
    std::int64_t inputs = 0;
    for (const AnyMatrix& values : matrices) {
        check_inputs(columns_of(values), inputs);
        parts.push_back({rows_of(values), dense_type(values), values.data()});
    }
    const nb::gil_scoped_release unlocked;
    return pack_dense(parts, inputs, threads, arena != nullptr ? *arena : own);
}

PackedLinear bound_pack_int(const std::vector<nb::tuple>& given, int bits, std::int64_t group_size, int threads, Arena* arena) {
    check_threads(threads);
    Arena own;
    if (group_size < 1) refuse("group_size must be at least 1, not " + std::to_string(group_size));
    std::vector<IntPart> parts;
    std::int64_t inputs = 0;
    for (const nb::tuple& each : given) {
        if (each.size() != 4) refuse("a part is (codes, scales, zeros or None, minimums or None)");
        const auto codes = nb::cast<AnyMatrix>(each[0]);
        const auto scales = nb::cast<Matrix<float>>(each[1]);
        if (codes.itemsize() != 1) refuse("codes must be int8, or uint8 beside zeros or minimums");
        check_inputs(columns_of(codes), inputs);
        const std::int64_t outputs = rows_of(codes), groups = (inputs + group_size - 1) / group_size;
        check_shape(scales, outputs, groups, "scales");
        IntPart part{outputs, static_cast<const std::uint8_t*>(codes.data()), scales.data(), nullptr, nullptr};
        if (!each[2].is_none()) {
            const auto zeros = nb::cast<Matrix<std::uint8_t>>(each[2]);
            check_shape(zeros, outputs, groups, "zeros");
            part.zeros = zeros.data();
        }
        if (!each[3].is_none()) {
            const auto minimums = nb::cast<Matrix<float>>(each[3]);
            check_shape(minimums, outputs, groups, "minimums");
            part.minimums = minimums.data();
        }
        parts.push_back(part);
    }
    const nb::gil_scoped_release unlocked;
    return pack_int(parts, inputs, bits, group_size, threads, arena != nullptr ? *arena : own);
}

PackedLinear bound_pack_fp8(const std::vector<nb::tuple>& given, int threads, Arena* arena) {
    check_threads(threads);
    Arena own;
    std::vector<Fp8Part> parts;
    std::int64_t inputs = 0;
    for (const nb::tuple& each : given) {
        if (each.size() != 3) refuse("a part is (codes, scales, (rows, columns) of a block)");
        const auto codes = nb::cast<Matrix<std::uint8_t>>(each[0]);
        const auto scales = nb::cast<Matrix<float>>(each[1]);
        const auto block = nb::cast<nb::tuple>(each[2]);
        check_inputs(columns_of(codes), inputs);
        const auto rows = nb::cast<std::int64_t>(block[0]);
        const std::int64_t columns = std::min(nb::cast<std::int64_t>(block[1]), inputs);
        if (rows < 1 || columns < 1) refuse("a block has at least one row and one column");
        const std::int64_t outputs = rows_of(codes);
        check_shape(scales, (outputs + rows - 1) / rows, (inputs + columns - 1) / columns, "scales");
        parts.push_back({outputs, codes.data(), scales.data(), rows, columns});
    }
    const nb::gil_scoped_release unlocked;
    return pack_fp8(parts, inputs, threads, arena != nullptr ? *arena : own);
}

PackedLinear bound_pack_gguf(const std::vector<Matrix<std::uint8_t>>& given, const std::string& precision,
                             std::int64_t inputs, int threads, Arena* arena) {
    check_threads(threads);
    Arena own;
    const std::int64_t block_bytes = precision == "q4_0" ? 18 : precision == "q4_1" ? 20 : 34;
    std::vector<BlockPart> parts;
    for (const Matrix<std::uint8_t>& blocks : given) {
        check_shape(blocks, rows_of(blocks), inputs / 32 * block_bytes, "blocks");
        parts.push_back({rows_of(blocks), blocks.data()});
    }
    const nb::gil_scoped_release unlocked;
    return pack_blocks(parts, inputs, precision, threads, arena != nullptr ? *arena : own);
}

RowFormat make_format(const std::string& codes, std::int64_t width, std::int64_t group, bool fp8, float static_scale,
                      int steps, float outlier_threshold, int weight_offset) {
    RowFormat format;
    if (codes != "int8" && codes != "bf16") refuse("codes must be \"int8\" or \"bf16\", not \"" + codes + "\"");
    format.codes = codes == "int8" ? RowFormat::Codes::int8 : RowFormat::Codes::bf16;
    if (width < 1) refuse("width must be at least 1, not " + std::to_string(width));
    const bool scaled = format.codes == RowFormat::Codes::int8 || fp8;
    if (fp8 && format.codes == RowFormat::Codes::int8) refuse("fp8 rows have codes \"bf16\"");
    if (group < 0 || group > width) refuse("group must be 0 .. width, not " + std::to_string(group));
    if (group != 0 && !scaled) refuse("plain bf16 rows have no groups");
    format.width = width;
    format.group = scaled && group == 0 ? width : group;
    if (format.group != 0 && format.group != width && (width % format.group != 0 || format.group % 8 != 0)) {
        refuse("groups of " + std::to_string(group) + " do not fit " + std::to_string(width) +
               " inputs in steps of 8");
    }
    format.fp8 = fp8;
    format.static_scale = static_scale;
    if (steps != 254 && steps != 255) refuse("steps must be 254 or 255, not " + std::to_string(steps));
    format.steps = steps;
    format.outlier_threshold = outlier_threshold;
    format.weight_offset = weight_offset;
    return format;
}

const char* name_of(PackedLinear::Codes codes) {
    switch (codes) {
        case PackedLinear::Codes::uint4:
            return "uint4";
        case PackedLinear::Codes::uint8:
            return "uint8";
        case PackedLinear::Codes::fp8:
            return "fp8";
        case PackedLinear::Codes::bf16:
            break;
    }
    return "bf16";
}

const char* name_of(PackedLinear::Offsets offsets) {
    switch (offsets) {
        case PackedLinear::Offsets::zeros:
            return "zeros";
        case PackedLinear::Offsets::minimums:
            return "minimums";
        case PackedLinear::Offsets::symmetric:
            break;
    }
    return "symmetric";
}

// An array of numpy's, which the caller fills through the pointer.
template <class T>
nb::object new_array(std::int64_t rows, std::int64_t columns, const char* dtype, T*& data) {
    nb::object array = nb::module_::import_("numpy").attr("empty")(nb::make_tuple(rows, columns), dtype);
    data = nb::cast<nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>>(array).data();
    return array;
}

nb::object bound_dequantize(const PackedLinear& weights, const std::string& instruction_set) {
    const KernelTable& kernels = kernel_table(select_instruction_set(instruction_set));
    float* out = nullptr;
    nb::object array = new_array(weights.outputs, weights.inputs, "float32", out);
    for (std::int64_t n = 0; n < weights.outputs; ++n) kernels.unpack_output(weights, n, out + n * weights.inputs);
    return array;
}

nb::object bound_linear(const PackedLinear& weights, const Matrix<float>& x, const RowFormat& format, int threads,
                        const std::string& instruction_set) {
    check_threads(threads);
    const KernelTable& kernels = kernel_table(select_instruction_set(instruction_set));
    if (const std::string reason = reason_against(weights, format); !reason.empty()) refuse(reason);
    check_shape(x, rows_of(x), weights.inputs, "x");
    const std::int64_t count = rows_of(x);
    float* values = nullptr;
    nb::object array = new_array(count, weights.outputs, "float32", values);
    RowBuffer buffer;
    const Rows rows = buffer.resize(format, count);
    LinearOutput out;
    out.values = values;
    out.stride = weights.outputs;
    const nb::gil_scoped_release unlocked;
    for (std::int64_t row = 0; row < count; ++row) kernels.quantize_row(x.data() + row * weights.inputs, rows, row);
    const std::int64_t share = std::max<std::int64_t>(1, (weights.panels() + threads - 1) / threads);
    parallel_for(weights.panels(), share, threads, [&](std::int64_t first, std::int64_t last) {
        kernels.linear(weights, rows, 0, count, first, last, out);
    });
    return array;
}

nb::object bound_rounded(const Matrix<float>& x, const RowFormat& format, const std::string& instruction_set) {
    const KernelTable& kernels = kernel_table(select_instruction_set(instruction_set));
    check_shape(x, rows_of(x), format.width, "x");
    const std::int64_t count = rows_of(x), width = format.width;
    RowBuffer buffer;
    const Rows rows = buffer.resize(format, count);
    float* values = nullptr;
    nb::object array = new_array(count, width, "float32", values);
    for (std::int64_t row = 0; row < count; ++row) {
        kernels.quantize_row(x.data() + row * width, rows, row);
        for (std::int64_t k = 0; k < width; ++k) {
            const std::int64_t at = row * format.stride() + k;
            float value = 0;
            if (rows.int8_codes != nullptr) {
                value = rows.int8_codes[at];
            } else {
                const std::uint32_t bits = static_cast<std::uint32_t>(rows.bf16_codes[at]) << 16;
                std::memcpy(&value, &bits, sizeof value);
            }
            if (format.groups() > 0) value *= rows.scales[row * format.groups() + k / format.group];
            values[row * width + k] = value;
        }
        if (format.outlier_threshold > 0) {
            for (std::int32_t i = 0; i < rows.outlier_counts[row]; ++i) {
                values[row * width + rows.outlier_places[row * width + i]] = rows.outliers[(2 * row + 1) * width + i];
            }
        }
    }
    return array;
}

}  // namespace

void bind_linears(nb::module_& m) {
    nb::class_<Arena>(m, "Arena", "Memory that packed weights share, on huge pages.").def(nb::init<>());

    nb::class_<PackedLinear>(m, "PackedLinear",
                             "A weight matrix [outputs, inputs] in the layout that the kernels stream.")
        .def_ro("outputs", &PackedLinear::outputs)
        .def_ro("inputs", &PackedLinear::inputs)
        .def_prop_ro("codes", [](const PackedLinear& w) { return name_of(w.codes); })
        .def_prop_ro("offsets", [](const PackedLinear& w) { return name_of(w.offsets); })
        .def_prop_ro("group_size", [](const PackedLinear& w) { return w.groups() == 0 ? w.inputs : w.group; })
        .def_prop_ro("num_bytes", &PackedLinear::num_bytes)
        .def("dequantize", &bound_dequantize, nb::kw_only(), "instruction_set"_a = "auto");

    nb::class_<RowFormat>(m, "RowFormat", "How a linear's input is rounded, a row a token.")
        .def(
            "__init__",
            [](RowFormat* self, const std::string& codes, std::int64_t width, std::int64_t group, bool fp8,
               float static_scale, int steps, float outlier_threshold, int weight_offset) {
                new (self) RowFormat(
                    make_format(codes, width, group, fp8, static_scale, steps, outlier_threshold, weight_offset));
            },
            "codes"_a, nb::kw_only(), "width"_a, "group"_a = 0, "fp8"_a = false, "static_scale"_a = 0.0f,
            "steps"_a = 254, "outlier_threshold"_a = 0.0f, "weight_offset"_a = 0)
        .def_ro("width", &RowFormat::width)
        .def_ro("group", &RowFormat::group)
        .def_prop_ro("codes",
                     [](const RowFormat& f) { return f.codes == RowFormat::Codes::int8 ? "int8" : "bf16"; })
        .def("reason_against",
             [](const RowFormat& f, const PackedLinear& w) -> std::optional<std::string> {
                 const std::string reason = reason_against(w, f);
                 return reason.empty() ? std::nullopt : std::optional(reason);
             },
             "weights"_a)
        .def("rounded", [](const RowFormat& f, const Matrix<float>& x,
                           const std::string& set) { return bound_rounded(x, f, set); },
             "x"_a, nb::kw_only(), "instruction_set"_a = "auto")
        .def("__eq__", [](const RowFormat& a, const RowFormat& b) { return a == b; });

    m.def("pack_dense", &bound_pack_dense, "parts"_a, "threads"_a = 1, "arena"_a = nb::none());
    m.def("pack_int", &bound_pack_int, "parts"_a, nb::kw_only(), "bits"_a, "group_size"_a, "threads"_a = 1, "arena"_a = nb::none());
    m.def("pack_fp8", &bound_pack_fp8, "parts"_a, "threads"_a = 1, "arena"_a = nb::none());
    m.def("pack_gguf", &bound_pack_gguf, "parts"_a, nb::kw_only(), "precision"_a, "inputs"_a, "threads"_a = 1, "arena"_a = nb::none());
    m.def("linear", &bound_linear, "weights"_a, "x"_a, "format"_a, "threads"_a = 1, nb::kw_only(),
          "instruction_set"_a = "auto");
}

}  // namespace tightpack
