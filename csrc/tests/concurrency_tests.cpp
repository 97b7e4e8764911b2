// Tests of what threads share, small enough to be built and run under the thread sanitizer: the team itself,
// and a whole step program, whose barriers are few because they are worked out from what operations touch.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attention.h"
#include "pack_linear.h"
#include "step_program.h"
#include "thread_team.h"

namespace {

using namespace tightpack;

int failures = 0;

void check(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// Plain memory, written by one thread and read by all on the other side of a barrier, over and over.
void test_barriers_order_memory(int threads) {
    ThreadTeam team(threads);
    std::vector<std::int64_t> cells(static_cast<std::size_t>(threads));
    std::vector<std::int64_t> wrong(static_cast<std::size_t>(threads));
    constexpr std::int64_t rounds = 200;
    for (int run = 0; run < 10; ++run) {
        team.run([&](ThreadTeam::Member& member) {
            const auto mine = static_cast<std::size_t>(member.index());
            check(member.count() == threads, "a member knows how many there are");
            for (std::int64_t round = 0; round < rounds; ++round) {
                cells[mine] = round + run;
                member.barrier();
                for (const std::int64_t cell : cells) wrong[mine] += cell != round + run;
                member.barrier();
            }
        });
        // run has returned: all that the others wrote is seen here.
        check(std::accumulate(wrong.begin(), wrong.end(), std::int64_t{0}) == 0,
              std::to_string(threads) + " threads saw each other's writes");
    }
}

// Long enough for the others to stop spinning and sleep, in a barrier and between runs.
void test_sleepers_wake() {
    ThreadTeam team(3);
    int sum = 0;
    for (int run = 0; run < 5; ++run) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        team.run([&](ThreadTeam::Member& member) {
            if (member.index() == run % 3) {
                std::this_thread::sleep_for(std::chrono::milliseconds(5));
                ++sum;
            }
            member.barrier();
            if (member.index() == (run + 1) % 3) ++sum;
        });
    }
    check(sum == 10, "all that sleep wake up");
}

void test_teams_come_and_go() {
    for (int threads = 1; threads < 5; ++threads) {
        for (int i = 0; i < 20; ++i) ThreadTeam team(threads);
    }
}

std::vector<float> random_numbers(std::mt19937& random, std::int64_t count, float scale) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> numbers(static_cast<std::size_t>(count));
    for (float& number : numbers) number = normal(random);
    return numbers;
}

PackedLinear random_weight(std::mt19937& random, std::int64_t outputs, std::int64_t inputs) {
    const std::vector<float> values =
        random_numbers(random, outputs * inputs, 1 / std::sqrt(static_cast<float>(inputs)));
    Arena arena;
    return pack_dense({{outputs, DensePart::Type::float32, values.data()}}, inputs, 1, arena);
}

// Two layers with all that layers can have, the second pruned and with experts as well.
struct Model {
    static constexpr std::int64_t hidden = 64, heads = 4, kv_heads = 2, dim = 16, inner = 96, tokens = 50;
    static constexpr std::int64_t num_experts = 5, experts_per_token = 2;
    static constexpr std::int64_t queries = heads * dim, qkv_width = (heads + 2 * kv_heads) * dim,
                                  positions = 64;

    std::mt19937 random{7};
    PackedLinear embedding = random_weight(random, tokens, hidden);
    PackedLinear qkv = random_weight(random, qkv_width, hidden);
    PackedLinear output = random_weight(random, hidden, queries);
    PackedLinear gate_up = random_weight(random, 2 * inner, hidden);
    PackedLinear down = random_weight(random, hidden, inner);
    PackedLinear router = random_weight(random, num_experts, hidden);
    std::vector<float> norm = random_numbers(random, hidden, 1);
    std::vector<float> cos = random_numbers(random, positions* dim / 2, 1);
    std::vector<float> sin = random_numbers(random, positions* dim / 2, 1);

    static RowFormat rows(std::int64_t width) { return {.width = width}; }
    StepProgram::Rotation rotation() const {
        return {.table = {.cos = cos.data(), .sin = sin.data()}, .positions = positions};
    }
    StepProgram::LinearOptions part(std::int64_t first, std::int64_t last) const {
        StepProgram::LinearOptions options;
        options.outputs = std::pair{first, last};
        return options;
    }

    std::unique_ptr<StepProgram> record(int threads, InstructionSet set) const {
        const StepProgram::Shape shape{
            .hidden_size = hidden, .num_heads = heads, .num_kv_heads = kv_heads, .head_dim = dim};
        auto program = std::make_unique<StepProgram>(std::make_shared<ThreadTeam>(threads), shape, set, true);
        StepProgram& p = *program;
        p.embed(embedding, 2);
        const auto mlp = [&] {
            const StepValue in = p.norm(norm, 1e-5f, rows(hidden));
            const StepValue both = p.linear(in, gate_up, {});
            p.linear_add(p.gate(both, Gate::Activation::silu, rows(inner)), down, {});
        };
        const auto experts = [&] {
            StepProgram::Mixture mixture{.norm = norm, .eps = 1e-5f};
            mixture.gate_up.assign(num_experts, {{&gate_up, rows(hidden)}});
            mixture.down.assign(num_experts, {{&down, rows(inner)}});
            const StepValue scores = p.linear(p.norm(norm, 1e-5f, rows(hidden)), router, {});
            p.experts(p.route(scores, experts_per_token, true), mixture);
        };
        // Queries, keys and values from two linears into one buffer; a norm behind attention.
        const StepValue in = p.norm(norm, 1e-5f, rows(hidden));
        StepProgram::LinearOptions left = part(0, queries), right = part(queries, qkv_width);
        const StepValue both = p.buffer(qkv_width);
        left.out = right.out = both;
        right.first_column = queries;
        p.linear(in, qkv, left);
        p.linear(in, qkv, right);
        const StepValue mixed = p.attention(p.rotate_and_store(both, 0, rotation()), 0, 0.25f, 0, 0);
        p.norm_add(p.linear(p.quantize(mixed, rows(queries)), output, {}), norm, 1e-5f);
        mlp();
        experts();
        const StepValue last = p.norm(norm, 1e-5f, rows(hidden));
        p.store_keys_values(p.linear(last, qkv, part(queries, qkv_width)), 1, rotation());
        p.keep_wanted_rows();
        const StepValue wanted = p.norm(norm, 1e-5f, rows(hidden));
        const StepValue rotated = p.rotate_queries(p.linear(wanted, qkv, part(0, queries)), rotation());
        p.linear_add(p.quantize(p.attention(rotated, 1, 0.25f, 0, 0), rows(queries)), output, {});
        mlp();
        experts();
        p.head(p.norm(norm, 1e-5f, rows(hidden)), embedding, 30);
        return program;
    }
};

// Steps of many rows, of some and of one, in one cache: on every number of threads the same logits.
void test_program(InstructionSet set) {
    const Model model;
    std::vector<float> expected;
    for (const int threads : {1, 2, 3}) {
        const std::unique_ptr<StepProgram> program = model.record(threads, set);
        KVCacheShape shape;
        shape.num_layers = 2;
        shape.num_blocks = 12;
        shape.num_kv_heads = Model::kv_heads;
        shape.head_dim = Model::dim;
        KVCache cache(shape);
        std::vector<float> all;
        const auto run = [&](const std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& chunks,
                             const std::vector<std::int32_t>& wanted,
                             const std::vector<std::int32_t>& blocks = {3, 1, 5, 0}) {
            const auto result = program->run({tokens, chunks, blocks, wanted}, cache);
            const float* logits = result.logits->as<float>();
            all.insert(all.end(), logits, logits + static_cast<std::int64_t>(wanted.size()) * Model::tokens);
            for (const std::uint8_t finite : result.finite) check(finite == 1, "numbers are finite");
        };
        std::vector<std::int32_t> tokens(40);
        for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 7 % 50);
        run(tokens, {30, 0, 3, 10, 0, 1}, {5, 29, 39});
        run({4, 5, 6}, {2, 30, 3, 1, 10, 1}, {1, 2});
        run({9}, {1, 32, 4}, {0});
        run({8}, {1, 33, 4}, {});
        // So many that each thread takes stretches of rows.
        std::vector<std::int32_t> many(192), everywhere(12);
        for (std::size_t i = 0; i < many.size(); ++i) many[i] = static_cast<std::int32_t>(i * 11 % 50);
        std::iota(everywhere.begin(), everywhere.end(), 0);
        run(many, {64, 0, 4, 64, 0, 4, 64, 0, 4}, {0, 63, 64, 191}, everywhere);
        if (threads == 1) expected = all;
        check(all == expected, "logits of " + std::string(name(set)) + " on " + std::to_string(threads) +
                                   " threads as on one");
    }
}

}  // namespace

int main() {
    for (const int threads : {1, 2, 3, 5}) test_barriers_order_memory(threads);
    test_sleepers_wake();
    test_teams_come_and_go();
    for (const InstructionSet set : usable_instruction_sets()) test_program(set);
    if (failures != 0) {
        std::fprintf(stderr, "%d failed\n", failures);
        return EXIT_FAILURE;
    }
    std::printf("passed\n");
    return EXIT_SUCCESS;
}
