// The half of StepProgram that runs: what a step is given, checked; the operations, replayed; what came of
// it.
#include <algorithm>
#include <chrono>
#include <numeric>
#include <stdexcept>

#include "step_program.h"

namespace tightpack {
namespace {

[[noreturn]] void refuse(const std::string& why) {
    throw std::invalid_argument("run: " + why);
}

std::string number(std::int64_t value) {
    return std::to_string(value);
}

constexpr std::size_t chunk_fields = 3;
// Logits of so many rows are kept between steps; what a larger step took goes back to the system.
constexpr std::int64_t logits_rows_kept = 64;

// A chunk as `run` is given it.
struct Chunk {
    std::int64_t num_rows, first_position, num_blocks;
};
Chunk chunk_at(std::span<const std::int32_t> chunks, std::size_t index) {
    const std::int32_t* fields = chunks.data() + index * chunk_fields;
    return {fields[0], fields[1], fields[2]};
}

// From so many rows a thread on, what lies between two attentions is done for a stretch of rows at a time, by
// one thread from one end to the other: what an operation makes is still in the core's own cache when the
// next one reads it, and nobody waits for anybody. With fewer, a thread had too few rows for all the weights
// it reads.
constexpr std::int64_t rows_a_thread = 64;
constexpr std::int64_t most_rows_a_stretch = 64;

// Rows of a stretch, so that threads have equally many; whole tiles.
std::int64_t rows_a_stretch(std::int64_t rows, std::int64_t threads) {
    const std::int64_t rounds = (rows + threads * most_rows_a_stretch - 1) / (threads * most_rows_a_stretch);
    const std::int64_t stretches = rounds * threads, tile = 8;
    return ((rows + stretches - 1) / stretches + tile - 1) / tile * tile;
}

class Exclusive {
  public:
    explicit Exclusive(std::atomic<bool>& flag) : flag_(flag) {
        if (flag_.exchange(true)) throw std::logic_error("the program is running a step already");
    }
    ~Exclusive() { flag_.store(false); }
    Exclusive(const Exclusive&) = delete;
    Exclusive& operator=(const Exclusive&) = delete;

  private:
    std::atomic<bool>& flag_;
};

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

StepProgram::Result StepProgram::run(const Step& step, KVCache& cache) {
    const Exclusive exclusive(running_);
    check(step, cache);
    prepare(step, cache);
    team_->run([this](ThreadTeam::Member& member) { replay(member); });
    return {.logits = logits_, .vocabulary = vocabulary_, .finite = verdicts(step, cache)};
}

void StepProgram::check(const Step& step, const KVCache& cache) const {
    if (vocabulary_ == 0) refuse("the program is not complete: head is its last operation");
    const KVCacheShape& shape = cache.shape();
    if (shape.num_kv_heads != shape_.num_kv_heads || shape.head_dim != shape_.head_dim ||
        shape.num_layers < num_layers_) {
        refuse("the cache has " + number(shape.num_layers) + " layers of " + number(shape.num_kv_heads) +
               " heads of " + number(shape.head_dim) + ", the program needs " + number(num_layers_) + " of " +
               number(shape_.num_kv_heads) + " of " + number(shape_.head_dim));
    }
    if (step.chunks.size() % chunk_fields != 0) refuse("chunks is no [chunks, 3]");
    std::int64_t rows = 0, blocks = 0;
    for (std::size_t i = 0; i < step.chunks.size() / chunk_fields; ++i) {
        const Chunk chunk = chunk_at(step.chunks, i);
        const std::string name = "chunk " + number(static_cast<std::int64_t>(i));
        if (chunk.num_rows < 1 || chunk.first_position < 0 || chunk.num_blocks < 0) {
            refuse(name + " has " + number(chunk.num_rows) + " tokens from position " +
                   number(chunk.first_position) + " and " + number(chunk.num_blocks) + " blocks");
        }
        const std::int64_t end = chunk.first_position + chunk.num_rows;
        if (end > num_positions_) {
            refuse(name + " ends at position " + number(end) + ", the rotation tables at " +
                   number(num_positions_));
        }
        if (end > chunk.num_blocks * shape.block_size) {
            refuse(name + " ends at position " + number(end) + ", its " + number(chunk.num_blocks) +
                   " blocks at " + number(chunk.num_blocks * shape.block_size));
        }
        rows += chunk.num_rows;
        blocks += chunk.num_blocks;
    }
    if (rows != static_cast<std::int64_t>(step.token_ids.size())) {
        refuse("the chunks have " + number(rows) + " tokens, token_ids " +
               number(static_cast<std::int64_t>(step.token_ids.size())));
    }
    if (blocks != static_cast<std::int64_t>(step.blocks.size())) {
        refuse("the chunks have " + number(blocks) + " blocks, blocks " +
               number(static_cast<std::int64_t>(step.blocks.size())));
    }
    for (const std::int32_t token : step.token_ids) {
        if (token < 0 || token >= num_tokens_) {
            refuse("token " + number(token) + " is not in the vocabulary of " + number(num_tokens_));
        }
    }
    for (const std::int32_t block : step.blocks) {
        if (block < 0 || block >= shape.num_blocks) {
            refuse("block " + number(block) + " is not in the cache of " + number(shape.num_blocks));
        }
    }
    std::int64_t before = -1;
    for (const std::int32_t row : step.wanted_rows) {
        if (row <= before || row >= rows) {
            refuse("wanted row " + number(row) + " after " + number(before) + ", of " + number(rows) +
                   " rows: they ascend");
        }
        before = row;
    }
}

void StepProgram::prepare(const Step& step, KVCache& cache) {
    const std::size_t rows = step.token_ids.size();
    StepState::RowsOf &all = state_.all, &wanted = state_.wanted;
    all.count = static_cast<std::int64_t>(rows);
    wanted.count = static_cast<std::int64_t>(step.wanted_rows.size());
    all.step_rows.resize(rows);
    std::iota(all.step_rows.begin(), all.step_rows.end(), 0);
    wanted.step_rows.assign(step.wanted_rows.begin(), step.wanted_rows.end());
    all.positions.resize(rows);
    wanted.positions.resize(step.wanted_rows.size());
    all.groups.clear();
    wanted.groups.clear();

    std::int32_t row = 0, query = 0;
    const std::int32_t* blocks = step.blocks.data();
    for (std::size_t i = 0; i < step.chunks.size() / chunk_fields; ++i) {
        const Chunk chunk = chunk_at(step.chunks, i);
        const auto count = static_cast<std::int32_t>(chunk.num_rows);
        const auto first_position = static_cast<std::int32_t>(chunk.first_position);
        std::int32_t* positions = all.positions.data() + row;
        std::iota(positions, positions + count, first_position);
        all.groups.push_back({row, count, positions, blocks});
        const std::int32_t first_query = query;
        for (; query < wanted.count && step.wanted_rows[static_cast<std::size_t>(query)] < row + count;
             ++query) {
            const std::int32_t offset = step.wanted_rows[static_cast<std::size_t>(query)] - row;
            wanted.positions[static_cast<std::size_t>(query)] = first_position + offset;
        }
        if (query > first_query) {
            wanted.groups.push_back(
                {first_query, query - first_query, wanted.positions.data() + first_query, blocks});
        }
        row += count;
        blocks += chunk.num_blocks;
    }
    state_.cache = &cache;
    state_.token_ids = step.token_ids.data();
    state_.failed.assign(rows, 0);
    const bool stretched = all.count >= rows_a_thread * team_->count();
    const std::int64_t stretch = rows_a_stretch(all.count, team_->count());
    storage_.reserve(all.count, stretched ? stretch * team_->count() : all.count);
    state_.row_0.assign(static_cast<std::size_t>(team_->count()), 0);
    expert_scratch_.reserve(all.count);
    for (std::size_t i = 0; i < operations_.size(); ++i) state_.taken[i].store(0, std::memory_order_relaxed);

    const auto row_bytes = static_cast<std::size_t>(vocabulary_) * sizeof(float);
    const auto needed = static_cast<std::size_t>(wanted.count) * row_bytes;
    const std::size_t kept = static_cast<std::size_t>(logits_rows_kept) * row_bytes;
    if (!logits_ || logits_->size() < needed || logits_->size() > std::max(kept, needed)) {
        logits_ = std::make_shared<AlignedBuffer>(std::max(kept, needed));
    }
    state_.logits = logits_->as<float>();
}

bool StepProgram::in_stretches(std::size_t operation, std::int64_t rows) const {
    const Operation& of = *operations_[operation];
    return rows >= rows_a_thread * team_->count() && of.row_by_row() && of.set == RowSet::all;
}

bool StepProgram::waits_before(std::size_t operation, std::int64_t rows) const {
    if (operation == 0) return false;
    const bool now = in_stretches(operation, rows), before = in_stretches(operation - 1, rows);
    if (now || before) return now != before;
    return (rows == 1 ? single_row_barriers_ : barriers_)[operation] != 0;
}

void StepProgram::replay(ThreadTeam::Member& member) {
    const std::int64_t rows = state_.all.count;
    const bool clocked = timed_ && member.index() == 0;
    double since = clocked ? now() : 0;
    const auto charge = [&](std::size_t operation) {
        if (!clocked) return;
        const double time = now();
        seconds_[operation] += time - since;
        since = time;
    };
    for (std::size_t i = 0; i < operations_.size();) {
        const Operation& operation = *operations_[i];
        if (state_.of(operation.set).count == 0) break;  // no logits are wanted
        if (i > 0) {
            if (waits_before(i, rows)) member.barrier();
            charge(i - 1);  // with the wait for those that were slower
        }
        const std::size_t first = i;
        while (i < operations_.size() && in_stretches(i, rows)) ++i;
        if (i > first) {
            replay_stretches(first, i, member, charge);
        } else {
            operation.run(member, state_);
            ++i;
        }
    }
    charge(operations_.size() - 1);
}

void StepProgram::replay_stretches(std::size_t first, std::size_t last, ThreadTeam::Member& member,
                                   const std::function<void(std::size_t)>& charge) {
    const std::int64_t rows = state_.all.count, stretch = rows_a_stretch(rows, member.count());
    std::int64_t& row_0 = state_.row_0[static_cast<std::size_t>(member.index())];
    for (;;) {
        const std::int64_t row = state_.taken[first].fetch_add(1, std::memory_order_relaxed) * stretch;
        if (row >= rows) break;
        row_0 = member.index() * stretch - row;
        for (std::size_t i = first; i < last; ++i) {
            const auto& operation = static_cast<const RowOperation&>(*operations_[i]);
            operation.run_rows({row, std::min(row + stretch, rows)}, member, state_);
            charge(i);
        }
    }
}

std::vector<std::uint8_t> StepProgram::verdicts(const Step& step, KVCache& cache) const {
    std::vector<std::uint8_t> finite;
    std::size_t row = 0;
    const std::int32_t* blocks = step.blocks.data();
    for (std::size_t i = 0; i < step.chunks.size() / chunk_fields; ++i) {
        const Chunk chunk = chunk_at(step.chunks, i);
        const auto first = state_.failed.begin() + static_cast<std::ptrdiff_t>(row);
        const bool fails =
            std::any_of(first, first + chunk.num_rows, [](std::uint8_t bad) { return bad != 0; });
        finite.push_back(!fails);
        if (fails) cache.clear(blocks, chunk.first_position, chunk.first_position + chunk.num_rows);
        row += static_cast<std::size_t>(chunk.num_rows);
        blocks += chunk.num_blocks;
    }
    return finite;
}

}  // namespace tightpack
