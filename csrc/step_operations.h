// The operations that a step is made of. Each is run by all threads of a team together and shares its own
// work out among them; what a row becomes never depends on how.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attention.h"
#include "kernel_table.h"
#include "packed_linear.h"
#include "step_inputs.h"
#include "step_storage.h"
#include "thread_team.h"

namespace tightpack {

// Whether an operation works on all rows of the step or, behind keep_wanted_rows, on those whose logits are
// wanted.
enum class RowSet { all, wanted };

// What all operations see of the step that is running.
struct StepState {
    // One set of rows, and where its queries stand.
    struct RowsOf {
        std::int64_t count = 0;
        std::vector<std::int32_t> step_rows;  // the row of the step that each is
        std::vector<std::int32_t> positions;
        std::vector<QueryGroup> groups;
    };

    const KernelTable& kernels;
    StepStorage& storage;
    KVCache* cache = nullptr;
    const std::int32_t* token_ids = nullptr;
    RowsOf all = {};
    RowsOf wanted = {};
    float* logits = nullptr;  // [wanted.count][vocabulary]
    // One for each operation: how many pieces of its work have been taken.
    std::unique_ptr<std::atomic<std::int64_t>[]> taken = {};
    // One for each row of the step, 1 where something was not finite.
    std::vector<std::uint8_t> failed = {};
    std::vector<AlignedBuffer> scratch = {};  // of each thread: a row as wide as any
    // Of each thread: where row 0 of the step would lie among the rows of values that are kept to threads.
    std::vector<std::int64_t> row_0 = {};

    const RowsOf& of(RowSet set) const { return set == RowSet::all ? all : wanted; }
    // With a single row, every thread rounds it for itself, which takes less than waiting for another's.
    bool single_row() const { return all.count == 1; }
    const Rows& rows(int value, const ThreadTeam::Member& member) const {
        return single_row() ? storage.own_row(value, member.index()) : storage.rows(value);
    }
    // Row `at` of a value, as the thread has it. Rows lie one after the other, those that are not there too.
    float* row(int value, std::int64_t at, const ThreadTeam::Member& member) const {
        const std::int64_t first = storage.of_threads(value) ? row_0[static_cast<std::size_t>(member.index())] : 0;
        return storage.fp32(value) + (first + at) * storage.shape(value).width;
    }
    float* own_scratch(const ThreadTeam::Member& member) const {
        return scratch[static_cast<std::size_t>(member.index())].as<float>();
    }
    void fail(RowSet set, std::int64_t at) {
        const auto step_row = static_cast<std::size_t>(of(set).step_rows[static_cast<std::size_t>(at)]);
        std::atomic_ref(failed[step_row]).store(1, std::memory_order_relaxed);
    }
};

// What an operation touches: threads must wait for each other between two that touch the same, unless both
// only read or each thread stays with its own share of the rows.
struct Access {
    static constexpr std::int64_t all_columns = std::numeric_limits<std::int64_t>::max();
    // The cache of layer l is the value -1 - l, which no other is.
    static int cache_of(std::int64_t layer) { return -1 - static_cast<int>(layer); }

    int value = 0;
    bool writes = false;
    bool by_rows = false;
    std::int64_t first_column = 0;
    std::int64_t last_column = all_columns;
};

class Operation {
  public:
    virtual ~Operation() = default;

    virtual void run(ThreadTeam::Member& member, StepState& state) const = 0;
    virtual std::vector<Access> accesses() const = 0;
    // What its time counts as.
    virtual std::string_view kind() const = 0;
    // Makes rows from values and nothing else, so that threads can each do it for themselves.
    virtual bool makes_rows() const { return false; }

    // Whether a row of what it makes needs no other row of what it reads, so that a RowOperation it is.
    virtual bool row_by_row() const { return false; }

    RowSet set = RowSet::all;
    std::size_t index = 0;  // in its program
};

struct RowRange {
    std::int64_t first;
    std::int64_t last;
};

// The thread's share of `count` neighbouring pieces; the first thread has the larger ones.
RowRange share(std::int64_t count, const ThreadTeam::Member& member);

// An operation that one thread can do for some rows, all by itself.
class RowOperation : public Operation {
  public:
    virtual void run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const = 0;
    void run(ThreadTeam::Member& member, StepState& state) const override;
    bool row_by_row() const final { return true; }
};

// The residual stream becomes the tokens' embeddings.
struct Embed final : RowOperation {
    int residual = 0;
    const PackedLinear* table = nullptr;
    float scale = 1;

    void run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "embed"; }
};

// RMSNorm and rounding.
struct Norm final : RowOperation {
    int residual = 0;
    int out = 0;
    std::vector<float> weight;
    float eps = 0;

    void run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "norm"; }
    bool makes_rows() const override { return true; }
};

// Rounding alone.
struct Quantize final : RowOperation {
    int in = 0;
    int out = 0;

    void run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "quantize"; }
    bool makes_rows() const override { return true; }
};

// activation(gate) * up and rounding.
struct Gate final : RowOperation {
    enum class Activation { silu, gelu_tanh };
    int in = 0;
    int out = 0;
    Activation activation = Activation::silu;
    std::int64_t width = 0;

    void run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "gate"; }
    bool makes_rows() const override { return true; }
};

// The residual stream += the norm of values.
struct NormAdd final : RowOperation {
    int residual = 0;
    int in = 0;
    std::vector<float> weight;
    float eps = 0;

    void run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "norm_add"; }
};

struct Linear final : RowOperation {
    int in = 0;
    const PackedLinear* weight = nullptr;
    std::vector<float> bias;  // or none
    std::int64_t first_output = 0;
    std::int64_t last_output = 0;
    std::optional<int> out;  // none: the logits
    std::int64_t first_column = 0;
    bool accumulate = false;
    float softcap = 0;
    std::string name;

    void run(ThreadTeam::Member& member, StepState& state) const override;
    void run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return name; }

  private:
    struct Panels {
        std::int64_t first;
        std::int64_t last;
    };
    Panels panels() const;
    void compute(RowRange rows, Panels some, const ThreadTeam::Member& member, const StepState& state) const;
};

// Rotation and the cache: queries, keys and values, or some of them.
struct Store final : RowOperation {
    int in = 0;
    std::optional<int> queries;
    std::optional<std::int64_t> layer;  // none: no keys and values
    std::int64_t num_heads = 0;
    std::int64_t num_kv_heads = 0;
    RotaryTable rotary{};
    std::vector<float> query_norm;  // or none
    std::vector<float> key_norm;
    float eps = 0;

    void run_rows(RowRange rows, ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "rotate_and_store"; }
};

struct Attend final : Operation {
    int queries = 0;
    int out = 0;
    std::int64_t layer = 0;
    Attention* attention = nullptr;

    void run(ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "attention"; }
};

// The residual stream of the wanted rows alone.
struct KeepWantedRows final : Operation {
    int residual = 0;
    int out = 0;

    void run(ThreadTeam::Member& member, StepState& state) const override;
    std::vector<Access> accesses() const override;
    std::string_view kind() const override { return "keep_wanted_rows"; }
};

}  // namespace tightpack
