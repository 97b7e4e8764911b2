// The operations of a mixture of experts (Shazeer et al. 2017; Mixtral, Jiang et al. 2024).
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "expert_scratch.h"
#include "step_operations.h"

namespace tightpack {

// From a router's scores to the shares of the experts that a token takes, and their numbers: [2 * used].
struct Route final : RowOperation {
    int scores = 0;
    int out = 0;
    std::int64_t used = 0;
    bool normalized = true;

    void run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "route"; }
};

// The residual stream += the weighted sum, in the router's order, of what a token's experts make of its norm:
// down(activation(gate) * up), where gate_up gives both. Rows are rounded by themselves and never meet another's
// numbers, so the bits are the same whatever else the step holds and however threads share it.
struct MixExperts final : Operation {
    int residual = 0;
    int routes = 0;
    std::int64_t used = 0;
    std::vector<float> norm;
    float eps = 0;
    Gate::Activation activation = Gate::Activation::silu;
    std::int64_t inner = 0;
    std::vector<ExpertLinear> gate_up;
    std::vector<ExpertLinear> down;
    ExpertScratch* scratch = nullptr;

    void run(ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "experts"; }

  private:
    // Tokens [first, last), as many as there is memory for.
    void run_some(RowRange tokens, ThreadTeam::Member& member, StepState& state) const;
    void round_inputs(RowRange copies, const ThreadTeam::Member& member, StepState& state) const;
    void gate(RowRange copies, const ThreadTeam::Member& member, StepState& state) const;
    void multiply(const std::vector<ExpertLinear>& linears, float* out, const ThreadTeam::Member& member,
                  const StepState& state) const;
    void add_outputs(RowRange some, const ThreadTeam::Member& member, StepState& state) const;
};

}  // namespace tightpack
