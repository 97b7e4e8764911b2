#include "expert_operations.h"

#include <algorithm>

#include "work_pieces.h"

namespace tightpack {
namespace {

// From so many copies on, a thread that is held up leaves pieces to the others. Below, each has its share of
// the weights, in one piece.
constexpr std::int64_t copies_to_share_freely = 64;
// A panel takes as long with one row as with so many: its weights have to be read.
constexpr std::int64_t least_rows = 4;

}  // namespace

void Route::run_rows(RowRange mine, ThreadTeam::Member& member, StepState& state) const {
    const std::int64_t count = state.storage.shape(scores).width;
    for (std::int64_t row = mine.first; row < mine.last; ++row) {
        const bool finite = state.kernels.experts.choose(state.row(scores, row, member), count, used, normalized,
                                                         state.row(out, row, member));
        if (!finite) state.fail(set, row);
    }
}

std::vector<Access> Route::accesses() const {
    return {{.value = scores, .by_rows = true}, {.value = out, .writes = true, .by_rows = true}};
}

std::vector<Access> MixExperts::accesses() const {
    // All rows are read before the barrier behind which each thread writes its own.
    return {{.value = routes}, {.value = residual}, {.value = residual, .writes = true, .by_rows = true}};
}

void MixExperts::run(ThreadTeam::Member& member, StepState& state) const {
    const std::int64_t tokens = state.of(set).count, most = scratch->most_tokens();
    for (std::int64_t first = 0; first < tokens; first += most) {
        run_some({first, std::min(first + most, tokens)}, member, state);
    }
    // A thread has added a share of each stretch, and not the share of all rows that `accesses` promises.
    if (tokens > most) member.barrier();
}

// Between its calls no barrier is needed: while some threads still add outputs, others round the inputs of
// other tokens, and what a product writes lies behind the next barrier.
void MixExperts::run_some(RowRange tokens, ThreadTeam::Member& member, StepState& state) const {
    ExpertPlan& plan = scratch->own(member.index()).plan;
    plan.sort(state.storage.fp32(routes), tokens.first, tokens.last, used, gate_up.size());
    const RowRange mine = share(plan.count(), member);
    round_inputs(mine, member, state);
    member.barrier();
    multiply(gate_up, scratch->gate_up(), member, state);
    member.barrier();
    gate(mine, member, state);
    member.barrier();
    multiply(down, scratch->outputs(), member, state);
    member.barrier();
    add_outputs(share(tokens.last - tokens.first, member), member, state);
}

void MixExperts::round_inputs(RowRange copies, const ThreadTeam::Member& member, StepState& state) const {
    ExpertScratch::Own& own = scratch->own(member.index());
    float* normed = own.row.as<float>();
    for (std::int64_t copy = copies.first; copy < copies.last; ++copy) {
        const auto at = static_cast<std::size_t>(copy);
        const std::int32_t token = own.plan.tokens[at];
        const auto width = static_cast<std::int64_t>(norm.size());
        if (!state.kernels.row.norm(state.row(residual, token, member), norm.data(), eps, width, normed)) {
            state.fail(set, token);
        }
        const ExpertLinear& linear = gate_up[static_cast<std::size_t>(own.plan.experts[at])];
        for (const auto& input : linear.inputs) {
            state.kernels.quantize_row(normed, scratch->rows(input), copy);
        }
    }
}

void MixExperts::gate(RowRange copies, const ThreadTeam::Member& member, StepState& state) const {
    ExpertScratch::Own& own = scratch->own(member.index());
    const RowKernels& kernels = state.kernels.row;
    const auto gated = activation == Gate::Activation::silu ? kernels.silu_gate : kernels.gelu_tanh_gate;
    float* product = own.row.as<float>();
    for (std::int64_t copy = copies.first; copy < copies.last; ++copy) {
        const auto at = static_cast<std::size_t>(copy);
        const float* both = scratch->gate_up() + copy * 2 * inner;
        if (!gated(both, both + inner, inner, product)) state.fail(set, own.plan.tokens[at]);
        for (const auto& input : down[static_cast<std::size_t>(own.plan.experts[at])].inputs) {
            state.kernels.quantize_row(product, scratch->rows(input), copy);
        }
    }
}

void MixExperts::multiply(const std::vector<ExpertLinear>& linears, float* out,
                          const ThreadTeam::Member& member, const StepState& state) const {
    ExpertScratch::Own& own = scratch->own(member.index());
    const std::vector<std::int64_t>& firsts = own.plan.firsts;
    const auto rows_of = [&](std::size_t expert) { return firsts[expert + 1] - firsts[expert]; };
    const auto cost_of = [&](std::size_t expert) { return std::max(rows_of(expert), least_rows); };
    std::int64_t total = 0;
    for (std::size_t expert = 0; expert < linears.size(); ++expert) {
        if (rows_of(expert) == 0) continue;
        for (const auto& run : linears[expert].runs) total += cost_of(expert) * run.weight->panels();
    }
    // The panels whose cost, counted from the first expert's first panel on, begins in [first, last).
    const auto compute = [&](std::int64_t first_cost, std::int64_t last_cost) {
        std::int64_t before = 0;
        for (std::size_t expert = 0; expert < linears.size() && before < last_cost; ++expert) {
            if (rows_of(expert) == 0) continue;
            const std::int64_t cost = cost_of(expert);
            for (const auto& run : linears[expert].runs) {
                const std::int64_t panels = run.weight->panels();
                const auto panel_at = [&](std::int64_t at) {
                    return std::clamp<std::int64_t>(at - before + cost - 1, 0, cost * panels + cost - 1) /
                           cost;
                };
                const std::int64_t first = panel_at(first_cost), last = panel_at(last_cost);
                before += cost * panels;
                if (first == last) continue;
                const LinearOutput output{.values = out + run.first_output, .stride = linears[expert].outputs};
                const Rows rows = scratch->rows(linears[expert].inputs[run.input]);
                for (std::int64_t row = firsts[expert]; row < firsts[expert + 1]; row += rows_at_a_time) {
                    const std::int64_t end = std::min(row + rows_at_a_time, firsts[expert + 1]);
                    state.kernels.linear(*run.weight, rows, row, end, first, last, output);
                }
            }
        }
    };
    const std::int64_t threads = member.count(), index = member.index();
    if (own.plan.count() < copies_to_share_freely) {
        compute(total * index / threads, total * (index + 1) / threads);
        return;
    }
    const std::int64_t pieces = pieces_a_thread * threads;
    for (;;) {
        const std::uint64_t ticket =
            scratch->next_ticket().fetch_add(1, std::memory_order_relaxed) - own.tickets;
        if (ticket >= static_cast<std::uint64_t>(pieces)) break;
        const auto piece = static_cast<std::int64_t>(ticket);
        compute(total * piece / pieces, total * (piece + 1) / pieces);
    }
    own.tickets += static_cast<std::uint64_t>(pieces + threads);
}

void MixExperts::add_outputs(RowRange some, const ThreadTeam::Member& member, StepState& state) const {
    const ExpertPlan& plan = scratch->own(member.index()).plan;
    const auto hidden = static_cast<std::int64_t>(norm.size());
    std::vector<const float*> outputs(static_cast<std::size_t>(used));
    for (std::int64_t at = some.first; at < some.last; ++at) {
        const std::int64_t token = plan.first_token + at;
        for (std::int64_t choice = 0; choice < used; ++choice) {
            const std::int32_t copy = plan.copies[static_cast<std::size_t>(at * used + choice)];
            outputs[static_cast<std::size_t>(choice)] = scratch->outputs() + copy * hidden;
        }
        state.kernels.experts.add_weighted(state.row(routes, token, member), outputs.data(), used, hidden,
                                           state.row(residual, token, member));
    }
}

}  // namespace tightpack
