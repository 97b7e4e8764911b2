// Tests of the kernels without Python, small enough to be built and run under sanitizers.
//
// Blocks lie in heap buffers of exactly their size, so that the address sanitizer sees a byte read or written
// too many; values are checked against literals and the instruction sets against each other. (What blocks
// mean is checked against the gguf package by the Python tests.)
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"
#include "cpu_features.h"
#include "dequantize.h"
#include "parallel_for.h"

namespace {

using tightpack::BlockFormat;
using tightpack::InstructionSet;

int failures = 0;

void check(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

void check_invalid(const std::function<void()>& call, const std::string& part_of_message) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        check(std::strstr(error.what(), part_of_message.c_str()) != nullptr,
              "message \"" + std::string(error.what()) + "\" holds \"" + part_of_message + "\"");
        return;
    }
    check(false, "std::invalid_argument with \"" + part_of_message + "\"");
}

// A heap buffer of exactly `size` values, `offset` bytes past an aligned allocation's start for bytes.
template <class T>
struct ExactBuffer {
    explicit ExactBuffer(std::size_t size, std::size_t offset = 0)
        : memory(std::make_unique<T[]>(size + offset)), data(memory.get() + offset) {}
    std::unique_ptr<T[]> memory;
    T* data;
};

template <class Out>
std::vector<Out> dequantized(BlockFormat format, InstructionSet set, const std::vector<std::uint8_t>& blocks,
                             std::size_t offset, int threads) {
    const tightpack::BlockShape& shape = tightpack::block_shape(format);
    const std::int64_t count = static_cast<std::int64_t>(blocks.size()) / shape.bytes * shape.elements;
    const ExactBuffer<std::uint8_t> input(blocks.size(), offset);
    if (!blocks.empty()) std::memcpy(input.data, blocks.data(), blocks.size());
    const ExactBuffer<Out> output(static_cast<std::size_t>(count));
    tightpack::check_dequantize(format, blocks.size(), count, threads);
    tightpack::dequantize(format, set, input.data, count, threads, output.data);
    return {output.data, output.data + count};
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    if (a.size() != b.size()) return false;
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (std::isnan(a[i]) ? !std::isnan(b[i]) : std::memcmp(&a[i], &b[i], sizeof(float)) != 0)
            return false;
    }
    return true;
}

bool is_nan_bf16(std::uint16_t bits) {
    return (bits & 0x7fffu) > 0x7f80u;
}

bool same(const std::vector<std::uint16_t>& a, const std::vector<std::uint16_t>& b) {
    if (a.size() != b.size()) return false;
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (is_nan_bf16(a[i]) ? !is_nan_bf16(b[i]) : a[i] != b[i]) return false;
    }
    return true;
}

// Random bytes (NaN and infinite scales among them), few blocks and many, at an even and an odd address.
void test_instruction_sets_agree() {
    std::mt19937 random(20240501);
    for (std::size_t f = 0; f < tightpack::num_block_formats; ++f) {
        const auto format = static_cast<BlockFormat>(f);
        const tightpack::BlockShape& shape = tightpack::block_shape(format);
        for (const std::int64_t num_blocks : {0, 1, 2, 3, 5, 7, 31, 32, 33, 67, 1025}) {
            std::vector<std::uint8_t> blocks(static_cast<std::size_t>(num_blocks * shape.bytes));
            for (std::uint8_t& byte : blocks) byte = static_cast<std::uint8_t>(random());
            const auto fp32 = dequantized<float>(format, InstructionSet::portable, blocks, 0, 1);
            const auto bf16 = dequantized<std::uint16_t>(format, InstructionSet::portable, blocks, 0, 1);
            for (const InstructionSet set : tightpack::usable_instruction_sets()) {
                const std::string what = std::string(shape.precision) + ", " + std::to_string(num_blocks) +
                                         " blocks, " + std::string(tightpack::name(set)) + " as portable";
                check(same(fp32, dequantized<float>(format, set, blocks, 1, 2)), what + ", fp32");
                check(same(bf16, dequantized<std::uint16_t>(format, set, blocks, 1, 2)), what + ", bf16");
            }
        }
    }
}

// More elements than a thread takes at a time, and a rest.
void test_threads_agree() {
    std::mt19937 random(7);
    const tightpack::BlockShape& shape = tightpack::block_shape(BlockFormat::q4_1);
    const std::size_t num_blocks = 3 * (1 << 18) / 32 + 17;
    std::vector<std::uint8_t> blocks(num_blocks * static_cast<std::size_t>(shape.bytes));
    for (std::uint8_t& byte : blocks) byte = static_cast<std::uint8_t>(random());
    const InstructionSet best = tightpack::usable_instruction_sets().front();
    const auto alone = dequantized<float>(BlockFormat::q4_1, best, blocks, 0, 1);
    for (const int threads : {2, 3, 16}) {
        check(same(alone, dequantized<float>(BlockFormat::q4_1, best, blocks, 0, threads)),
              std::to_string(threads) + " threads as one");
    }
}

void test_literals() {
    for (const InstructionSet set : tightpack::usable_instruction_sets()) {
        const std::string on = " on " + std::string(tightpack::name(set));
        // 1, -2, largest, smallest subnormal, largest subnormal, -0, infinity
        const std::vector<std::uint8_t> halves = {0x00, 0x3c, 0x00, 0xc0, 0xff, 0x7b, 0x01,
                                                  0x00, 0xff, 0x03, 0x00, 0x80, 0x00, 0x7c};
        const std::vector<float> values = {
            1.0f, -2.0f, 65504.0f, 0x1p-24f, 1023 * 0x1p-24f, -0.0f, std::numeric_limits<float>::infinity()};
        check(same(values, dequantized<float>(BlockFormat::fp16, set, halves, 0, 1)), "fp16" + on);

        // scale 2, minimum -1, nibbles 0x51: 1 in the first half, 5 in the second
        std::vector<std::uint8_t> q4_1 = {0x00, 0x40, 0x00, 0xbc};
        q4_1.insert(q4_1.end(), 16, 0x51);
        std::vector<float> expected(16, 1.0f);
        expected.insert(expected.end(), 16, 9.0f);
        check(same(expected, dequantized<float>(BlockFormat::q4_1, set, q4_1, 0, 1)), "q4_1" + on);

        // fp16 has three mantissa bits more than bf16. Halfway cases: 1 + 2^-8 down to even, 1 + 3 * 2^-8 up
        // to even; beside them 1 + 5 * 2^-10 up; a signalling NaN becomes quiet, its sign kept.
        const std::vector<std::uint8_t> ties = {0x04, 0x3c, 0x0c, 0x3c, 0x05, 0x3c, 0x01, 0xfc};
        const auto rounded = dequantized<std::uint16_t>(BlockFormat::fp16, set, ties, 0, 1);
        check(rounded == std::vector<std::uint16_t>{0x3f80, 0x3f82, 0x3f81, 0xffc0}, "rounding" + on);
    }
}

void test_parallel_for() {
    for (const std::int64_t count : {0, 1, 9, 10, 11, 1000}) {
        for (const int threads : {1, 2, 5}) {
            std::vector<std::atomic<int>> visits(static_cast<std::size_t>(count));
            tightpack::parallel_for(count, 10, threads, [&](std::int64_t first, std::int64_t last) {
                check(first < last && last - first <= 10, "a range within the grain");
                for (std::int64_t i = first; i < last; ++i) ++visits[static_cast<std::size_t>(i)];
            });
            for (const auto& times : visits) check(times == 1, "each index visited once");
        }
    }
}

// One request of 150 positions stored and attended to: by one thread and by two, in one piece and in two, on every
// set and in every precision. The cache is of exactly the blocks that the request fills, its last one first.
void test_attention() {
    using tightpack::KVCacheShape;
    constexpr std::int32_t positions = 150, heads = 6, kv_heads = 2;
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    std::vector<std::int32_t> numbers(positions), blocks;
    for (std::int32_t i = 0; i < positions; ++i) numbers[static_cast<std::size_t>(i)] = i;
    for (std::int32_t block = (positions + 15) / 16; block > 0; --block) blocks.push_back(block - 1);
    for (const std::int64_t head_dim : {34, 64, 256}) {
        const auto width = static_cast<std::size_t>((heads + 2 * kv_heads) * head_dim);
        const auto out_size = static_cast<std::size_t>(positions * heads * head_dim);
        std::vector<float> qkv(width * positions), norm(static_cast<std::size_t>(head_dim), 1.5f);
        for (float& value : qkv) value = normal(random);
        const std::vector<float> cos(static_cast<std::size_t>(positions * head_dim / 2), 0.6f);
        const std::vector<float> sin(static_cast<std::size_t>(positions * head_dim / 2), 0.8f);
        for (const auto precision : {KVCacheShape::Precision::bf16, KVCacheShape::Precision::fp8,
                                     KVCacheShape::Precision::int8, KVCacheShape::Precision::dynamic_int8}) {
            for (const InstructionSet set : tightpack::usable_instruction_sets()) {
                const tightpack::KernelTable& kernels = tightpack::kernel_table(set);
                std::vector<std::vector<float>> results;
                for (const int threads : {1, 2}) {
                    KVCacheShape shape = {precision, 2, static_cast<std::int64_t>(blocks.size()), 16, kv_heads,
                                          head_dim, {}, {}};
                    tightpack::KVCache cache(shape);
                    tightpack::ThreadTeam team(threads);
                    const ExactBuffer<std::uint16_t> queries(out_size);
                    const ExactBuffer<float> out(out_size);
                    std::vector<tightpack::QueryGroup> groups;
                    if (threads == 1) {
                        groups = {{0, positions, numbers.data(), blocks.data()}};
                    } else {
                        groups = {{0, 131, numbers.data(), blocks.data()},
                                  {131, positions - 131, numbers.data() + 131, blocks.data()}};
                    }
                    tightpack::StoreArguments store;
                    store.groups = groups;
                    store.values = qkv.data();
                    store.stride = static_cast<std::int64_t>(width);
                    store.num_heads = heads;
                    store.num_kv_heads = kv_heads;
                    store.query_norm = store.key_norm = norm.data();
                    store.norm_eps = 1e-6f;
                    store.rotary = {cos.data(), sin.data()};
                    store.queries = queries.data;
                    tightpack::Attention attention({heads, kv_heads, head_dim, 0.1f, 5.0f, 140}, threads);
                    const std::vector<tightpack::QueryGroup> last = {
                        {positions - 1, 1, numbers.data() + positions - 1, blocks.data()}};
                    team.run([&](tightpack::ThreadTeam::Member& member) {
                        tightpack::rotate_and_store(store, cache, 1, kernels, positions * member.index() / threads,
                                                    positions * (member.index() + 1) / threads);
                        member.barrier();
                        attention.run(member, groups, queries.data, cache, 1, kernels, out.data);
                        member.barrier();
                        attention.run(member, last, queries.data, cache, 1, kernels, out.data);
                    });
                    results.emplace_back(out.data, out.data + out_size);
                    check(std::isfinite(results.back().back()), "a finite result");
                    cache.clear(blocks.data(), 0, positions);
                }
                check(same(results[0], results[1]),
                      "attention of one thread as of two, " + std::string(tightpack::name(set)));
            }
        }
    }
}

void test_errors() {
    using tightpack::check_dequantize;
    check_invalid([] { check_dequantize(BlockFormat::q4_0, 18, 33, 1); }, "count 33");
    check_invalid([] { check_dequantize(BlockFormat::q4_0, 17, 32, 1); }, "17 bytes");
    check_invalid([] { check_dequantize(BlockFormat::q6_k, 210, -256, 1); }, "count -256");
    check_invalid([] { check_dequantize(BlockFormat::fp16, 2, std::int64_t{1} << 62, 1); }, "2 bytes");
    check_invalid([] { check_dequantize(BlockFormat::q8_0, 34, 32, 0); }, "threads 0");
    check_invalid([] { tightpack::block_format("q9_9"); }, "q9_9");
    check_invalid([] { tightpack::select_instruction_set("avx1024"); }, "portable");
}

}  // namespace

int main() {
    test_instruction_sets_agree();
    test_threads_agree();
    test_literals();
    test_parallel_for();
    test_attention();
    test_errors();
    if (failures != 0) {
        std::fprintf(stderr, "%d failed\n", failures);
        return EXIT_FAILURE;
    }
    std::string sets;
    for (const InstructionSet set : tightpack::usable_instruction_sets()) {
        sets.append(" ").append(tightpack::name(set));
    }
    std::printf("passed on:%s\n", sets.c_str());
    return EXIT_SUCCESS;
}
