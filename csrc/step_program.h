// The forward pass of a decoder as a list of operations, recorded once and replayed for every step.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpu_features.h"
#include "expert_operations.h"
#include "step_operations.h"

namespace tightpack {

class StepProgram;

// What an operation of a program makes and later ones read.
struct StepValue {
    const StepProgram* program = nullptr;
    int number = 0;
    std::int64_t width = 0;
};

// Methods that record throw std::invalid_argument, naming both sides, where things do not fit. Weights and
// rotation tables must outlive the program; the small vectors are copied.
class StepProgram {
  public:
    struct Shape {
        std::int64_t hidden_size = 0;
        std::int64_t num_heads = 0;
        std::int64_t num_kv_heads = 0;
        std::int64_t head_dim = 0;
    };
    struct Rotation {
        RotaryTable table{};
        std::int64_t positions = 0;
        std::vector<float> query_norm = {};  // [head_dim], or none
        std::vector<float> key_norm = {};
        float eps = 0;
    };
    struct LinearOptions {
        std::vector<float> bias = {};                                       // [weight.outputs], or none
        std::optional<std::pair<std::int64_t, std::int64_t>> outputs = {};  // [first, last); none: all
        std::optional<StepValue> out = {};
        std::int64_t first_column = 0;
        std::string name = "linear";
    };

    StepProgram(std::shared_ptr<ThreadTeam> team, const Shape& shape, InstructionSet set, bool timed);

    void embed(const PackedLinear& table, float scale);
    StepValue norm(std::vector<float> weight, float eps, const RowFormat& into);
    StepValue quantize(const StepValue& values, const RowFormat& into);
    StepValue buffer(std::int64_t width);
    StepValue linear(const StepValue& rows, const PackedLinear& weight, LinearOptions options);
    void linear_add(const StepValue& rows, const PackedLinear& weight, LinearOptions options);
    void norm_add(const StepValue& values, std::vector<float> weight, float eps);
    StepValue gate(const StepValue& gate_up, Gate::Activation activation, const RowFormat& into);
    // One expert's linear: its weights, with the format of the rows that each reads.
    using ExpertRuns = std::vector<std::pair<const PackedLinear*, RowFormat>>;
    struct Mixture {
        std::vector<float> norm = {};
        float eps = 0;
        Gate::Activation activation = Gate::Activation::silu;
        std::vector<ExpertRuns> gate_up = {};  // one an expert
        std::vector<ExpertRuns> down = {};
    };
    StepValue route(const StepValue& scores, std::int64_t experts_per_token, bool normalized);
    void experts(const StepValue& routes, Mixture mixture);
    StepValue rotate_and_store(const StepValue& qkv, std::int64_t layer, Rotation rotation);
    void store_keys_values(const StepValue& keys_values, std::int64_t layer, Rotation rotation);
    StepValue rotate_queries(const StepValue& queries, Rotation rotation);
    StepValue attention(const StepValue& queries, std::int64_t layer, float scale, float softcap,
                        std::int64_t window);
    void keep_wanted_rows();
    void head(const StepValue& rows, const PackedLinear& weight, float softcap);

    // What run is given: as the arguments of the same names in Python.
    struct Step {
        std::span<const std::int32_t> token_ids;
        std::span<const std::int32_t> chunks;  // [chunks][3]
        std::span<const std::int32_t> blocks;
        std::span<const std::int32_t> wanted_rows;
    };
    struct Result {
        std::shared_ptr<AlignedBuffer> logits;  // [wanted_rows][vocabulary]; the next run may write it again
        std::int64_t vocabulary = 0;
        std::vector<std::uint8_t> finite;  // of each chunk
    };
    // Throws std::invalid_argument as recording does, std::logic_error while another run is under way.
    Result run(const Step& step, KVCache& cache);

    const std::shared_ptr<ThreadTeam>& team() const { return team_; }
    const Shape& shape() const { return shape_; }
    InstructionSet instruction_set() const { return set_; }
    std::vector<std::string> operations() const;
    int num_barriers(std::int64_t rows) const;
    // Seconds by kind since the last call.
    std::map<std::string, double, std::less<>> profile();

  private:
    struct ValueInfo {
        RowSet set = RowSet::all;
        bool written = false;
    };

    StepValue add_value(const ValueShape& shape);
    StepValue add_rows(const RowFormat& format, std::int64_t width, std::string_view who);
    template <class Made>
    Made& record(Made operation);
    void check_open(std::string_view who) const;
    void check_read(const StepValue& value, ValueShape::Kind kind, std::int64_t width,
                    std::string_view who) const;
    void check_mine(const StepValue& value, std::string_view who) const;
    void check_norm(const std::vector<float>& weight, std::int64_t width, std::string_view who) const;
    Linear make_linear(const StepValue& rows, const PackedLinear& weight, LinearOptions options);
    std::optional<int> store(const StepValue& in, std::optional<std::int64_t> layer, bool queries,
                             Rotation rotation, std::string_view who);
    Attention* attention_of(const AttentionSpec& spec);
    ExpertLinear expert_linear(const ExpertRuns& runs, std::int64_t inputs, std::int64_t outputs,
                               std::string_view who);

    void keep_values_to_threads();
    void prepare(const Step& step, KVCache& cache);
    void check(const Step& step, const KVCache& cache) const;
    // Whether the operation is one of those that a thread does for a stretch of a step's rows at a time, and
    // whether threads wait for each other before it.
    bool in_stretches(std::size_t operation, std::int64_t rows) const;
    bool waits_before(std::size_t operation, std::int64_t rows) const;
    void replay(ThreadTeam::Member& member);
    void replay_stretches(std::size_t first, std::size_t last, ThreadTeam::Member& member,
                          const std::function<void(std::size_t)>& charge);
    std::vector<std::uint8_t> verdicts(const Step& step, KVCache& cache) const;

    const std::shared_ptr<ThreadTeam> team_;
    const Shape shape_;
    const InstructionSet set_;
    const bool timed_;
    StepStorage storage_;
    StepState state_;
    std::vector<std::unique_ptr<Operation>> operations_;
    std::vector<ValueInfo> values_;
    std::vector<std::pair<AttentionSpec, std::unique_ptr<Attention>>> attentions_;
    ExpertScratch expert_scratch_;
    std::optional<int> residual_;
    RowSet rows_ = RowSet::all;
    std::int64_t num_layers_ = 0;
    std::int64_t num_positions_ = std::numeric_limits<std::int64_t>::max();
    std::int64_t num_tokens_ = 0;  // that have an embedding
    std::int64_t vocabulary_ = 0;  // logits; 0 before head
    // Before which operations threads wait for each other, and before which when the step has one row.
    std::vector<std::uint8_t> barriers_;
    std::vector<std::uint8_t> single_row_barriers_;
    std::shared_ptr<AlignedBuffer> logits_;
    std::vector<double> seconds_;  // of each operation
    std::atomic<bool> running_{false};
};

}  // namespace tightpack
