#include "sampler.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

namespace tightpack {
namespace {

// Weights, relative to the likeliest token's, down to which candidates are sorted; the next where those do not
// decide. Sorting all of 49152 takes 3 ms, and nearly every draw is decided by a few hundred.
constexpr float cuts[] = {0x1p-6f, 0x1p-12f, 0x1p-20f, std::numeric_limits<float>::min()};

// Calls body(row, thread) for all rows, shared out as threads come free.
template <class Body>
void for_each_row(ThreadTeam& team, std::size_t rows, const Body& body) {
    std::atomic<std::size_t> next{0};
    const auto work = [&](int thread) {
        for (std::size_t row = next++; row < rows; row = next++) body(row, thread);
    };
    if (rows == 1) return work(0);
    team.run([&](ThreadTeam::Member& member) { work(member.index()); });
}

}  // namespace

void SamplingSettings::see_prompt(std::span<const std::int32_t> tokens) {
    for (const std::int32_t token : tokens) seen_.try_emplace(token, 0);
}

void SamplingSettings::see_output(std::span<const std::int32_t> tokens) {
    for (const std::int32_t token : tokens) ++seen_[token];
}

void SamplingSettings::edit(float* logits, std::int64_t vocabulary, bool hold_back) const {
    for (const auto& [token, value] : bias) logits[token] += value;
    if (hold_back) {
        for (const std::int32_t token : endings) {
            if (token < vocabulary) logits[token] = -std::numeric_limits<float>::infinity();
        }
    }
    if (!penalizes()) return;
    for (const auto& [token, count] : seen_) {
        float& logit = logits[token];
        if (repetition_penalty != 1) {
            logit = logit > 0 ? logit / repetition_penalty : logit * repetition_penalty;
        }
        if (count > 0) logit -= static_cast<float>(count * frequency_penalty + presence_penalty);
    }
}

void Sampler::sample(ThreadTeam& team, const KernelTable& kernels, const float* logits, std::int64_t vocabulary,
                     std::span<const SamplingRow> rows, std::int32_t* tokens) {
    for_each_row(team, rows.size(), [&](std::size_t row, int thread) {
        tokens[row] = choose(kernels, logits + static_cast<std::int64_t>(row) * vocabulary, vocabulary, rows[row],
                             scratch_[static_cast<std::size_t>(thread)]);
    });
}

std::int32_t Sampler::choose(const KernelTable& kernels, const float* logits, std::int64_t vocabulary,
                             const SamplingRow& row, Scratch& scratch) {
    auto best = kernels.sampling.largest(logits, vocabulary);
    if (!best.sound) return -1;
    if (row.settings == nullptr) return best.id;
    if (row.settings->edits(row.hold_back_endings)) {
        scratch.logits.assign(logits, logits + vocabulary);
        row.settings->edit(scratch.logits.data(), vocabulary, row.hold_back_endings);
        logits = scratch.logits.data();
        best = kernels.sampling.largest(logits, vocabulary);
        // Where every token is held back there is none to prefer: the first, as of equals.
        if (!best.sound) return 0;
    }
    if (row.settings->temperature == 0) return best.id;
    return draw(kernels, logits, vocabulary, best.value, row, scratch);
}

std::int32_t Sampler::draw(const KernelTable& kernels, const float* logits, std::int64_t vocabulary,
                           float largest, const SamplingRow& row, Scratch& scratch) {
    const SamplingSettings& settings = *row.settings;
    scratch.weights.resize(static_cast<std::size_t>(vocabulary));
    scratch.ids.resize(static_cast<std::size_t>(vocabulary));
    float* weights = scratch.weights.data();
    std::int32_t* ids = scratch.ids.data();
    const float temperature = std::max(settings.temperature, 1e-10f);
    const double total =
        kernels.sampling.weigh(logits, vocabulary, largest, temperature, settings.min_p, weights);
    const bool limited = settings.top_k > 0 && settings.top_k < vocabulary;
    for (const float cut : cuts) {
        const std::int64_t found = kernels.sampling.collect(weights, vocabulary, cut, ids);
        const bool complete = cut == cuts[std::size(cuts) - 1];
        std::sort(ids, ids + found, [weights](std::int32_t a, std::int32_t b) {
            return weights[a] != weights[b] ? weights[a] > weights[b] : a < b;
        });
        scratch.cumulative.resize(static_cast<std::size_t>(found));
        double sum = 0;
        for (std::int64_t i = 0; i < found; ++i) {
            sum += static_cast<double>(weights[ids[i]]);
            scratch.cumulative[static_cast<std::size_t>(i)] = sum;
        }
        const double* cumulative = scratch.cumulative.data();
        // Ranks that may be drawn: within top_k and the nucleus; -1 where these candidates do not tell.
        std::int64_t last = found - 1;
        double mass = total;
        if (limited && settings.top_k <= found) {
            last = settings.top_k - 1;
            mass = cumulative[last];
        } else if (limited && !complete) {
            continue;
        }
        const bool open = !complete && !(limited && settings.top_k <= found);
        bool ends = !open;
        if (settings.top_p < 1) {
            const auto reached = std::lower_bound(cumulative, cumulative + found, settings.top_p * mass) - cumulative;
            if (reached >= found && open) continue;
            last = std::min<std::int64_t>(last, std::min<std::int64_t>(reached, found - 1));
            mass = cumulative[last];
            ends = true;
        }
        const auto rank = std::upper_bound(cumulative, cumulative + found, row.uniform * mass) - cumulative;
        if (rank > last && !ends) continue;
        return ids[std::min<std::int64_t>(rank, last)];
    }
    return ids[0];
}

std::vector<RowLogprobs> token_logprobs(ThreadTeam& team, const KernelTable& kernels, const float* logits,
                                        std::int64_t vocabulary, std::span<const std::int32_t> token_ids,
                                        std::span<const std::int32_t> counts) {
    std::vector<RowLogprobs> entries(token_ids.size());
    for_each_row(team, token_ids.size(), [&](std::size_t row, int) {
        const float* own = logits + static_cast<std::int64_t>(row) * vocabulary;
        const float largest = kernels.sampling.largest(own, vocabulary).value;
        const auto log_sum =
            static_cast<float>(std::log(kernels.sampling.sum_of_exponentials(own, vocabulary, largest)));
        const auto logprob = [&](std::int32_t token) { return (own[token] - largest) - log_sum; };
        RowLogprobs& entry = entries[row];
        entry.logprob = logprob(token_ids[row]);
        entry.rank = 1 + kernels.sampling.count_above(own, vocabulary, largest, log_sum, entry.logprob);
        const auto wanted = static_cast<std::size_t>(std::min<std::int64_t>(counts[row], vocabulary));
        if (wanted == 0) return;
        // Kept best first; a token enters where it beats the last, so of equals the lowest id stays.
        entry.top.reserve(wanted + 1);
        for (std::int32_t token = 0; token < vocabulary; ++token) {
            const float value = logprob(token);
            if (entry.top.size() == wanted && !(value > entry.top.back().second)) continue;
            const auto behind = std::upper_bound(entry.top.begin(), entry.top.end(), value,
                                                 [](float v, const auto& other) { return v > other.second; });
            entry.top.insert(behind, {token, value});
            if (entry.top.size() > wanted) entry.top.pop_back();
        }
    });
    return entries;
}

}  // namespace tightpack
