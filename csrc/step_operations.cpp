#include "step_operations.h"

#include <algorithm>
#include <cstring>

#include "work_pieces.h"

namespace tightpack {
namespace {

// From so many rows on, a thread that is held up leaves the rest to the others. Below, each has its share of
// the weights, the same every time and in one piece.
constexpr std::int64_t rows_to_share_freely = 32;
constexpr std::int64_t most_panels_a_piece = 18;
// Panels that the kernels' tiles are wide.
constexpr std::int64_t tile_panels = 3;

}  // namespace

RowRange share(std::int64_t count, const ThreadTeam::Member& member) {
    const std::int64_t threads = member.count(), index = member.index();
    return {(count * index + threads - 1) / threads, (count * (index + 1) + threads - 1) / threads};
}

void RowOperation::run(ThreadTeam::Member& member, StepState& state) const {
    const std::int64_t count = state.of(set).count;
    run_rows(makes_rows() && state.single_row() ? RowRange{0, count} : share(count, member), member, state);
}

void Embed::run_rows(RowRange mine, ThreadTeam::Member& member, StepState& state) const {
    for (std::int64_t row = mine.first; row < mine.last; ++row) {
        float* out = state.row(residual, row, member);
        state.kernels.unpack_output(*table, state.token_ids[row], out);
        if (scale != 1) state.kernels.row.scale(scale, table->inputs, out);
    }
}

std::vector<Access> Embed::accesses() const {
    return {{.value = residual, .writes = true, .by_rows = true}};
}

void Norm::run_rows(RowRange mine, ThreadTeam::Member& member, StepState& state) const {
    const Rows& rows = state.rows(out, member);
    float* normed = state.own_scratch(member);
    const auto width = static_cast<std::int64_t>(weight.size());
    for (std::int64_t row = mine.first; row < mine.last; ++row) {
        if (!state.kernels.row.norm(state.row(residual, row, member), weight.data(), eps, width, normed)) {
            state.fail(set, row);
        }
        state.kernels.quantize_row(normed, rows, row);
    }
}

std::vector<Access> Norm::accesses() const {
    return {{.value = residual, .by_rows = true}, {.value = out, .writes = true, .by_rows = true}};
}

void Quantize::run_rows(RowRange mine, ThreadTeam::Member& member, StepState& state) const {
    const Rows& rows = state.rows(out, member);
    for (std::int64_t row = mine.first; row < mine.last; ++row) {
        const float* x = state.row(in, row, member);
        if (!state.kernels.row.is_finite(x, rows.format.width)) state.fail(set, row);
        state.kernels.quantize_row(x, rows, row);
    }
}

std::vector<Access> Quantize::accesses() const {
    return {{.value = in, .by_rows = true}, {.value = out, .writes = true, .by_rows = true}};
}

void Gate::run_rows(RowRange mine, ThreadTeam::Member& member, StepState& state) const {
    const Rows& rows = state.rows(out, member);
    const RowKernels& kernels = state.kernels.row;
    const auto gated = activation == Activation::silu ? kernels.silu_gate : kernels.gelu_tanh_gate;
    float* product = state.own_scratch(member);
    for (std::int64_t row = mine.first; row < mine.last; ++row) {
        const float* gate = state.row(in, row, member);
        if (!gated(gate, gate + width, width, product)) state.fail(set, row);
        state.kernels.quantize_row(product, rows, row);
    }
}

std::vector<Access> Gate::accesses() const {
    return {{.value = in, .by_rows = true}, {.value = out, .writes = true, .by_rows = true}};
}

void NormAdd::run_rows(RowRange mine, ThreadTeam::Member& member, StepState& state) const {
    float* normed = state.own_scratch(member);
    const auto width = static_cast<std::int64_t>(weight.size());
    for (std::int64_t row = mine.first; row < mine.last; ++row) {
        if (!state.kernels.row.norm(state.row(in, row, member), weight.data(), eps, width, normed))
            state.fail(set, row);
        state.kernels.row.add(normed, width, state.row(residual, row, member));
    }
}

std::vector<Access> NormAdd::accesses() const {
    return {{.value = in, .by_rows = true}, {.value = residual, .writes = true, .by_rows = true}};
}

Linear::Panels Linear::panels() const {
    return {first_output / PackedLinear::panel,
            (last_output + PackedLinear::panel - 1) / PackedLinear::panel};
}

void Linear::compute(RowRange rows, Panels some, const ThreadTeam::Member& member,
                     const StepState& state) const {
    if (rows.first == rows.last || some.first == some.last) return;
    // The kernel counts columns from output 0 of the weight, whichever part of it is computed.
    const LinearOutput output{
        .values = (out ? state.row(*out, 0, member) : state.logits) + (first_column - first_output),
        .stride = out ? state.storage.shape(*out).width : last_output,
        .accumulate = accumulate,
        .bias = bias.empty() ? nullptr : bias.data(),
    };
    state.kernels.linear(*weight, state.rows(in, member), rows.first, rows.last, some.first, some.last,
                         output);
    if (softcap == 0) return;
    const std::int64_t first = some.first * PackedLinear::panel;
    const std::int64_t last = std::min(some.last * PackedLinear::panel, last_output);
    for (std::int64_t row = rows.first; row < rows.last; ++row) {
        state.kernels.row.softcap(softcap, last - first, output.values + row * output.stride + first);
    }
}

void Linear::run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const {
    compute(rows, panels(), member, state);
}

void Linear::run(ThreadTeam::Member& member, StepState& state) const {
    const std::int64_t count = state.of(set).count;
    const Panels all = panels();
    const std::int64_t num_panels = all.last - all.first;
    if (count < rows_to_share_freely) {
        const RowRange mine = share(num_panels, member);
        compute({0, count}, {all.first + mine.first, all.first + mine.last}, member, state);
        return;
    }
    const std::int64_t row_pieces = (count + rows_at_a_time - 1) / rows_at_a_time;
    const std::int64_t fair = row_pieces * num_panels / (pieces_a_thread * member.count());
    const std::int64_t a_piece =
        std::clamp<std::int64_t>(fair / tile_panels * tile_panels, tile_panels, most_panels_a_piece);
    const std::int64_t panel_pieces = (num_panels + a_piece - 1) / a_piece;
    for (;;) {
        const std::int64_t piece = state.taken[index].fetch_add(1, std::memory_order_relaxed);
        if (piece >= row_pieces * panel_pieces) return;
        const std::int64_t row = piece / panel_pieces * rows_at_a_time;
        const std::int64_t panel = all.first + piece % panel_pieces * a_piece;
        compute({row, std::min(row + rows_at_a_time, count)}, {panel, std::min(panel + a_piece, all.last)},
                member, state);
    }
}

std::vector<Access> Linear::accesses() const {
    std::vector<Access> all{{.value = in}};
    if (out) {
        const std::int64_t last = first_column + last_output - first_output;
        all.push_back({.value = *out, .writes = true, .first_column = first_column, .last_column = last});
    }
    return all;
}

void Store::run_rows(RowRange mine, ThreadTeam::Member& member, StepState& state) const {
    const StepState::RowsOf& rows = state.of(set);
    const std::int64_t width = state.storage.shape(in).width;
    for (std::int64_t row = mine.first; row < mine.last; ++row) {
        if (!state.kernels.row.is_finite(state.row(in, row, member), width)) state.fail(set, row);
    }
    const StoreArguments arguments{
        .groups = rows.groups,
        .values = state.row(in, 0, member),
        .stride = width,
        .num_heads = queries ? num_heads : 0,
        .num_kv_heads = layer ? num_kv_heads : 0,
        .query_norm = query_norm.empty() ? nullptr : query_norm.data(),
        .key_norm = key_norm.empty() ? nullptr : key_norm.data(),
        .norm_eps = eps,
        .rotary = rotary,
        .queries = queries ? state.storage.bf16(*queries) : nullptr,
    };
    rotate_and_store(arguments, *state.cache, layer.value_or(0), state.kernels, mine.first, mine.last);
}

std::vector<Access> Store::accesses() const {
    std::vector<Access> all{{.value = in, .by_rows = true}};
    if (queries) all.push_back({.value = *queries, .writes = true, .by_rows = true});
    if (layer) all.push_back({.value = Access::cache_of(*layer), .writes = true, .by_rows = true});
    return all;
}

void Attend::run(ThreadTeam::Member& member, StepState& state) const {
    attention->run(member, state.of(set).groups, state.storage.bf16(queries), *state.cache, layer,
                   state.kernels, state.row(out, 0, member));
}

std::vector<Access> Attend::accesses() const {
    return {{.value = queries}, {.value = Access::cache_of(layer)}, {.value = out, .writes = true}};
}

void KeepWantedRows::run(ThreadTeam::Member& member, StepState& state) const {
    const RowRange mine = share(state.wanted.count, member);
    const auto bytes = static_cast<std::size_t>(state.storage.shape(out).width) * sizeof(float);
    for (std::int64_t row = mine.first; row < mine.last; ++row) {
        const std::int32_t from = state.wanted.step_rows[static_cast<std::size_t>(row)];
        std::memcpy(state.row(out, row, member), state.row(residual, from, member), bytes);
    }
}

std::vector<Access> KeepWantedRows::accesses() const {
    return {{.value = residual}, {.value = out, .writes = true, .by_rows = true}};
}

}  // namespace tightpack
