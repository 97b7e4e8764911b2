// The next token of each row of logits.
//
// What a row gives depends on its logits, its settings and its uniform number alone: the same bits in any batch
// and on any number of threads. Which token a seed gives is what the other executors give: tokens are ordered by
// descending probability, equals by id, after logits / temperature, min_p, top_k and top_p in this order; the
// token drawn is the first whose cumulative probability exceeds the uniform number.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernel_table.h"
#include "thread_team.h"

namespace tightpack {

// How a request's logits are edited and drawn from.
class SamplingSettings {
  public:
    float temperature = 0;   // 0: greedy
    std::int64_t top_k = 0;  // 0: all
    double top_p = 1;
    float min_p = 0;
    float repetition_penalty = 1;
    double presence_penalty = 0;
    double frequency_penalty = 0;
    std::vector<std::pair<std::int32_t, float>> bias;
    std::vector<std::int32_t> endings;  // tokens that are held back

    // Tokens of the request's so far, which penalties are for; each is told once.
    void see_prompt(std::span<const std::int32_t> tokens);
    void see_output(std::span<const std::int32_t> tokens);

    bool penalizes() const {
        return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
    }
    bool edits(bool hold_back) const { return penalizes() || !bias.empty() || (hold_back && !endings.empty()); }

    // In order: bias is added; endings go to minus infinity where held back; repetition_penalty divides positive
    // logits of tokens seen and multiplies others (Keskar et al. 2019); frequency_penalty times its count and
    // presence_penalty are subtracted from each output token's logit (OpenAI).
    void edit(float* logits, std::int64_t vocabulary, bool hold_back) const;

  private:
    // Output tokens to how often they came; prompt tokens to 0.
    std::unordered_map<std::int32_t, std::int32_t> seen_;
};

struct SamplingRow {
    const SamplingSettings* settings = nullptr;  // null: greedy, unedited
    double uniform = 0;
    bool hold_back_endings = false;
};

// Log-probabilities of a row's own distribution, before edits and temperature.
struct RowLogprobs {
    float logprob = 0;
    std::int64_t rank = 0;  // 1 + tokens likelier than it
    // The likeliest tokens, best first, of equals the lowest id.
    std::vector<std::pair<std::int32_t, float>> top;
};

// Buffers of the threads of a team, kept between steps.
class Sampler {
  public:
    explicit Sampler(int threads) : scratch_(static_cast<std::size_t>(threads)) {}

    // tokens: of each row of logits [rows][vocabulary], -1 where they hold NaN or their largest is not finite.
    void sample(ThreadTeam& team, const KernelTable& kernels, const float* logits, std::int64_t vocabulary,
                std::span<const SamplingRow> rows, std::int32_t* tokens);

  private:
    struct Scratch {
        std::vector<float> logits;
        std::vector<float> weights;
        std::vector<std::int32_t> ids;
        std::vector<double> cumulative;
    };
    static std::int32_t choose(const KernelTable& kernels, const float* logits, std::int64_t vocabulary,
                               const SamplingRow& row, Scratch& scratch);
    static std::int32_t draw(const KernelTable& kernels, const float* logits, std::int64_t vocabulary,
                             float largest, const SamplingRow& row, Scratch& scratch);

    std::vector<Scratch> scratch_;
};

// One entry a row: of token_ids[row], and the counts[row] likeliest.
std::vector<RowLogprobs> token_logprobs(ThreadTeam& team, const KernelTable& kernels, const float* logits,
                                        std::int64_t vocabulary, std::span<const std::int32_t> token_ids,
                                        std::span<const std::int32_t> counts);

}  // namespace tightpack
