#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tightpack {
namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The sampler with the team whose threads it uses.
struct BoundSampler {
    std::shared_ptr<ThreadTeam> team;
    const KernelTable& kernels;
    Sampler sampler;
};

void check_tokens(const std::vector<std::int32_t>& tokens, std::int64_t vocabulary, const char* what) {
    for (const std::int32_t token : tokens) {
        if (token >= 0 && token < vocabulary) continue;
        throw nb::value_error((std::string(what) + " holds token id " + std::to_string(token) +
                               ", outside the vocabulary of " + std::to_string(vocabulary))
                                  .c_str());
    }
}

std::vector<std::int32_t> bound_sample(BoundSampler& self, const Logits& logits, const nb::list& given) {
    if (given.size() != logits.shape(0)) {
        throw nb::value_error((std::to_string(given.size()) + " rows are described and " +
                               std::to_string(logits.shape(0)) + " rows of logits given")
                                  .c_str());
    }
    std::vector<SamplingRow> rows(given.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        if (given[i].is_none()) continue;
        const auto row = nb::cast<nb::tuple>(given[i]);
        rows[i].settings = nb::cast<const SamplingSettings*>(row[0]);
        rows[i].uniform = nb::cast<double>(row[1]);
        rows[i].hold_back_endings = nb::cast<bool>(row[2]);
    }
    std::vector<std::int32_t> tokens(rows.size());
    {
        const nb::gil_scoped_release unlocked;
        self.sampler.sample(*self.team, self.kernels, logits.data(), static_cast<std::int64_t>(logits.shape(1)),
                            rows, tokens.data());
    }
    return tokens;
}

nb::list bound_token_logprobs(BoundSampler& self, const Logits& logits, const std::vector<std::int32_t>& token_ids,
                              const std::vector<std::int32_t>& counts) {
    const auto vocabulary = static_cast<std::int64_t>(logits.shape(1));
    if (token_ids.size() != logits.shape(0) || counts.size() != logits.shape(0)) {
        throw nb::value_error("token_ids and counts must have an entry for each row of logits");
    }
    check_tokens(token_ids, vocabulary, "token_ids");
    std::vector<RowLogprobs> entries;
    {
        const nb::gil_scoped_release unlocked;
        entries = token_logprobs(*self.team, self.kernels, logits.data(), vocabulary, token_ids, counts);
    }
    nb::list result;
    for (const RowLogprobs& entry : entries) {
        nb::list top;
        for (const auto& [token, value] : entry.top) top.append(nb::make_tuple(token, value));
        result.append(nb::make_tuple(entry.logprob, entry.rank, nb::tuple(top)));
    }
    return result;
}

}  // namespace

void bind_sampler(nb::module_& m) {
    nb::class_<SamplingSettings>(m, "SamplingSettings", "How a request's logits are edited and drawn from.")
        .def(
            "__init__",
            [](SamplingSettings* self, double temperature, std::int64_t top_k, double top_p, double min_p,
               double repetition_penalty, double presence_penalty, double frequency_penalty,
               std::vector<std::pair<std::int32_t, float>> bias, std::vector<std::int32_t> endings) {
                new (self) SamplingSettings;
                self->temperature = static_cast<float>(temperature);
                self->top_k = top_k;
                self->top_p = top_p;
                self->min_p = static_cast<float>(min_p);
                self->repetition_penalty = static_cast<float>(repetition_penalty);
                self->presence_penalty = presence_penalty;
                self->frequency_penalty = frequency_penalty;
                self->bias = std::move(bias);
                self->endings = std::move(endings);
            },
            nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "repetition_penalty"_a,
            "presence_penalty"_a, "frequency_penalty"_a, "bias"_a, "endings"_a)
        .def_prop_ro("penalizes", &SamplingSettings::penalizes)
        .def("see_prompt", [](SamplingSettings& s, const std::vector<std::int32_t>& t) { s.see_prompt(t); })
        .def("see_output", [](SamplingSettings& s, const std::vector<std::int32_t>& t) { s.see_output(t); });

    nb::class_<BoundSampler>(m, "Sampler", "Chooses the next token of each row of logits, on a team's threads.")
        .def(
            "__init__",
            [](BoundSampler* self, std::shared_ptr<ThreadTeam> team, const std::string& instruction_set) {
                const int threads = team->count();
                new (self) BoundSampler{std::move(team), kernel_table(select_instruction_set(instruction_set)),
                                        Sampler(threads)};
            },
            "team"_a, nb::kw_only(), "instruction_set"_a = "auto")
        .def("sample", &bound_sample, "logits"_a.noconvert(), "rows"_a)
        .def("token_logprobs", &bound_token_logprobs, "logits"_a.noconvert(), "token_ids"_a, "counts"_a);
}

}  // namespace tightpack
