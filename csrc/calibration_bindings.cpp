#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <string>

#include "array_arguments.h"
#include "bindings.h"
#include "column_rounding.h"
#include "kernel_table.h"
#include "token_products.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tightpack {
namespace {

using WritableMatrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Numbers = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void bound_add_token_products(const WritableMatrix& sums,
                              const Matrix<std::uint16_t>& left,
                              const std::optional<Matrix<std::uint16_t>>& right, int threads,
                              const std::string& instruction_set) {
    check_threads(threads);
    const KernelTable& kernels = kernel_table(select_instruction_set(instruction_set));
    const TokenColumns rows{left.data(), rows_of(left), columns_of(left)};
    TokenColumns columns = rows;
    if (right.has_value()) {
        check_shape(*right, rows.tokens, columns_of(*right), "right");
        columns = {right->data(), rows_of(*right), columns_of(*right)};
    }
    check_shape(sums, rows.width, columns.width, "sums");
    const nb::gil_scoped_release unlocked;
    add_token_products(kernels, rows, right.has_value() ? &columns : nullptr, threads, sums.data());
}

void check_length(const auto& numbers, std::int64_t length, const char* name) {
    if (static_cast<std::int64_t>(numbers.shape(0)) == length) return;
    refuse(std::string(name) + " must be [" + std::to_string(length) + "], not [" +
           std::to_string(numbers.shape(0)) + "]");
}

void bound_round_columns(const Matrix<float>& state, const std::optional<Matrix<float>>& held,
                         const Matrix<float>& scales, const std::optional<Matrix<float>>& zeros,
                         const Numbers<std::int32_t>& group_of_column, int bits, const Numbers<float>& pivots,
                         const Matrix<float>& influence, const WritableMatrix& codes,
                         const WritableMatrix& changes, int threads, const std::string& instruction_set) {
    check_threads(threads);
    const KernelTable& kernels = kernel_table(select_instruction_set(instruction_set));
    const std::int64_t columns = rows_of(state), outputs = columns_of(state), groups = rows_of(scales);
    if (bits < 1 || bits > 8) refuse("bits must be 1 .. 8, not " + std::to_string(bits));
    if (columns > ColumnRounding::most_columns) {
        refuse("state must have at most " + std::to_string(ColumnRounding::most_columns) + " columns, not " +
               std::to_string(columns));
    }
    check_shape(scales, groups, outputs, "scales");
    if (held.has_value()) check_shape(*held, columns, outputs, "held");
    if (zeros.has_value()) check_shape(*zeros, groups, outputs, "zeros");
    check_shape(influence, columns, columns, "influence");
    check_shape(codes, columns, outputs, "codes");
    check_shape(changes, columns, outputs, "changes");
    check_length(pivots, columns, "pivots");
    check_length(group_of_column, columns, "group_of_column");
    const std::int32_t* const group = group_of_column.data();
    if (!std::all_of(group, group + columns, [&](std::int32_t g) { return 0 <= g && g < groups; })) {
        refuse("group_of_column must be 0 .. " + std::to_string(groups - 1));
    }
    ColumnRounding work{};
    work.state = state.data();
    work.held = held.has_value() ? held->data() : nullptr;
    work.columns = columns;
    work.outputs = outputs;
    work.scales = scales.data();
    work.zeros = zeros.has_value() ? zeros->data() : nullptr;
    work.group_of_column = group;
    work.bits = bits;
    work.pivots = pivots.data();
    work.influence = influence.data();
    work.codes = codes.data();
    work.changes = changes.data();
    const nb::gil_scoped_release unlocked;
    round_columns(kernels, work, threads);
}

}  // namespace

void bind_calibration(nb::module_& m) {
    m.def("add_token_products", &bound_add_token_products, "sums"_a.noconvert(), "left"_a.noconvert(),
          "right"_a.noconvert().none() = nb::none(), "threads"_a = 1, nb::kw_only(),
          "instruction_set"_a = "auto");
    m.def("round_columns", &bound_round_columns, "state"_a.noconvert(), "held"_a.noconvert().none(),
          "scales"_a.noconvert(), "zeros"_a.noconvert().none(), "group_of_column"_a.noconvert(), "bits"_a,
          "pivots"_a.noconvert(), "influence"_a.noconvert(), "codes"_a.noconvert(), "changes"_a.noconvert(),
          "threads"_a = 1, nb::kw_only(), "instruction_set"_a = "auto");
}

}  // namespace tightpack
