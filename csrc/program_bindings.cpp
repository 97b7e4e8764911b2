#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <utility>

#include "bindings.h"
#include "dequantize.h"
#include "step_program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tightpack {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
std::span<const T> span_of(const Vector<T>& vector) {
    return {vector.data(), vector.size()};
}

std::vector<float> copy_of(const std::optional<Vector<float>>& vector) {
    return vector ? std::vector<float>(vector->data(), vector->data() + vector->size())
                  : std::vector<float>();
}

StepProgram::Rotation rotation(const Matrix<float>& cos, const Matrix<float>& sin, std::int64_t head_dim,
                               const std::optional<Vector<float>>& query_norm,
                               const std::optional<Vector<float>>& key_norm, float eps) {
    const auto pairs = static_cast<std::size_t>(head_dim / 2);
    if (cos.shape(1) != pairs || sin.shape(1) != pairs || cos.shape(0) != sin.shape(0)) {
        const auto shape = [](const Matrix<float>& m) {
            return "[" + std::to_string(m.shape(0)) + ", " + std::to_string(m.shape(1)) + "]";
        };
        throw std::invalid_argument("cos " + shape(cos) + " and sin " + shape(sin) +
                                    " are to be [positions, head_dim / 2] of head_dim " +
                                    std::to_string(head_dim));
    }
    return {.table = {.cos = cos.data(), .sin = sin.data()},
            .positions = static_cast<std::int64_t>(cos.shape(0)),
            .query_norm = copy_of(query_norm),
            .key_norm = copy_of(key_norm),
            .eps = eps};
}

// Of tuples, which keep what is in them alive: an expert's linear each, of (weight, format of its rows) each.
std::vector<StepProgram::ExpertRuns> expert_runs(const nb::tuple& experts) {
    std::vector<StepProgram::ExpertRuns> all;
    for (const nb::handle expert : experts) {
        StepProgram::ExpertRuns runs;
        if (!nb::isinstance<nb::tuple>(expert)) throw nb::type_error("an expert's linear is a tuple");
        for (const nb::handle run : nb::borrow<nb::tuple>(expert)) {
            if (!nb::isinstance<nb::tuple>(run) || nb::len(run) != 2) {
                throw nb::type_error("a run is a tuple of a PackedLinear and a RowFormat");
            }
            const auto pair = nb::borrow<nb::tuple>(run);
            runs.emplace_back(nb::cast<const PackedLinear*>(pair[0]), nb::cast<RowFormat>(pair[1]));
        }
        all.push_back(std::move(runs));
    }
    return all;
}

Gate::Activation activation(const std::string& name) {
    if (name == "silu") return Gate::Activation::silu;
    if (name == "gelu_tanh") return Gate::Activation::gelu_tanh;
    throw std::invalid_argument("unknown activation \"" + name + "\"; known are \"silu\" and \"gelu_tanh\"");
}

// An array of numpy's over memory that lives as long as it.
template <class T, class Owner>
nb::ndarray<nb::numpy, T> array_over(T* data, std::initializer_list<std::size_t> shape, Owner owner) {
    const nb::capsule keeper(new Owner(std::move(owner)),
                             [](void* memory) noexcept { delete static_cast<Owner*>(memory); });
    return nb::ndarray<nb::numpy, T>(data, shape, keeper);
}

nb::tuple run(StepProgram& program, const Vector<std::int32_t>& token_ids, const Matrix<std::int32_t>& chunks,
              const Vector<std::int32_t>& blocks, const Vector<std::int32_t>& wanted_rows, KVCache& cache) {
    if (chunks.shape(1) != 3) {
        throw std::invalid_argument("chunks are [chunks, 3], got [" + std::to_string(chunks.shape(0)) + ", " +
                                    std::to_string(chunks.shape(1)) + "]");
    }
    StepProgram::Result result;
    {
        const nb::gil_scoped_release unlocked;
        result = program.run({.token_ids = span_of(token_ids),
                              .chunks = {chunks.data(), chunks.size()},
                              .blocks = span_of(blocks),
                              .wanted_rows = span_of(wanted_rows)},
                             cache);
    }
    const std::size_t wanted = wanted_rows.size(), vocabulary = static_cast<std::size_t>(result.vocabulary);
    float* logits = result.logits->as<float>();
    const std::size_t num_chunks = result.finite.size();
    auto finite = std::make_unique<bool[]>(num_chunks);
    std::copy(result.finite.begin(), result.finite.end(), finite.get());
    bool* flags = finite.get();
    return nb::make_tuple(array_over(logits, {wanted, vocabulary}, std::move(result.logits)),
                          array_over(flags, {num_chunks}, std::move(finite)));
}

void bind_team(nb::module_& m) {
    nb::class_<ThreadTeam>(m, "ThreadTeam", "Threads that stay, shared by programs and the sampler.")
        .def(
            "__init__",
            [](ThreadTeam* self, int threads, const std::vector<std::vector<int>>& cores) {
                if (threads < 1 || threads > max_threads) {
                    throw std::invalid_argument("threads must be 1 .. " + std::to_string(max_threads) +
                                                ", not " + std::to_string(threads));
                }
                if (!cores.empty() && cores.size() != static_cast<std::size_t>(threads)) {
                    throw std::invalid_argument("cores must name the CPUs of each of " + std::to_string(threads) +
                                                " threads, not of " + std::to_string(cores.size()));
                }
                for (const std::vector<int>& cpus : cores) {
                    for (const int cpu : cpus) {
                        if (cpu >= 0 && cpu < max_cpus) continue;
                        throw std::invalid_argument("a CPU's number must be 0 .. " + std::to_string(max_cpus - 1) +
                                                    ", not " + std::to_string(cpu));
                    }
                }
                new (self) ThreadTeam(threads, cores);
            },
            "threads"_a, nb::kw_only(), "cores"_a = std::vector<std::vector<int>>{})
        .def_prop_ro("threads", &ThreadTeam::count);
}

}  // namespace

void bind_program(nb::module_& m) {
    bind_team(m);

    nb::class_<StepValue>(m, "Value", "What one operation of a program makes and later ones read.")
        .def_ro("width", &StepValue::width);

    // Weights are read and values belong to their program for as long as it lives, hence keep_alive: <1, n>
    // ties argument n (self is 1) to the program, <0, 1> the program to what is returned.
    nb::class_<StepProgram>(m, "Program",
                            "The forward pass of a decoder, recorded once and replayed for every step.")
        .def(
            "__init__",
            [](StepProgram* self, std::shared_ptr<ThreadTeam> team, std::int64_t hidden_size,
               std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim,
               const std::string& instruction_set, bool timed) {
                const StepProgram::Shape shape{.hidden_size = hidden_size,
                                               .num_heads = num_heads,
                                               .num_kv_heads = num_kv_heads,
                                               .head_dim = head_dim};
                new (self)
                    StepProgram(std::move(team), shape, select_instruction_set(instruction_set), timed);
            },
            "team"_a, nb::kw_only(), "hidden_size"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a,
            "instruction_set"_a = "auto", "timed"_a = false)
        .def_prop_ro("instruction_set",
                     [](const StepProgram& program) { return std::string(name(program.instruction_set())); })
        .def_prop_ro("team", &StepProgram::team)
        .def_prop_ro("operations", &StepProgram::operations)
        .def("num_barriers", &StepProgram::num_barriers, "rows"_a)
        .def("embed", &StepProgram::embed, "table"_a, nb::kw_only(), "scale"_a = 1.0f, nb::keep_alive<1, 2>())
        .def(
            "norm",
            [](StepProgram& program, const Vector<float>& weight, float eps, const RowFormat& into) {
                return program.norm(copy_of(weight), eps, into);
            },
            "weight"_a.noconvert(), "eps"_a, "into"_a, nb::keep_alive<0, 1>())
        .def("quantize", &StepProgram::quantize, "values"_a, "into"_a, nb::keep_alive<0, 1>())
        .def("buffer", &StepProgram::buffer, "width"_a, nb::keep_alive<0, 1>())
        .def(
            "linear",
            [](StepProgram& program, const StepValue& rows, const PackedLinear& weight,
               const std::optional<Vector<float>>& bias,
               const std::optional<std::pair<std::int64_t, std::int64_t>>& outputs,
               const std::optional<StepValue>& out, std::int64_t first_column, const std::string& name) {
                return program.linear(rows, weight,
                                      {.bias = copy_of(bias),
                                       .outputs = outputs,
                                       .out = out,
                                       .first_column = first_column,
                                       .name = name});
            },
            "rows"_a, "weight"_a, nb::kw_only(), "bias"_a.noconvert() = nb::none(), "outputs"_a = nb::none(),
            "out"_a = nb::none(), "first_column"_a = 0, "name"_a = "linear", nb::keep_alive<1, 3>(),
            nb::keep_alive<0, 1>())
        .def(
            "linear_add",
            [](StepProgram& program, const StepValue& rows, const PackedLinear& weight,
               const std::optional<Vector<float>>& bias, const std::string& name) {
                program.linear_add(rows, weight, {.bias = copy_of(bias), .name = name});
            },
            "rows"_a, "weight"_a, nb::kw_only(), "bias"_a.noconvert() = nb::none(), "name"_a = "linear",
            nb::keep_alive<1, 3>())
        .def(
            "norm_add",
            [](StepProgram& program, const StepValue& values, const Vector<float>& weight, float eps) {
                program.norm_add(values, copy_of(weight), eps);
            },
            "values"_a, "weight"_a.noconvert(), "eps"_a)
        .def(
            "gate",
            [](StepProgram& program, const StepValue& gate_up, const std::string& name,
               const RowFormat& into) { return program.gate(gate_up, activation(name), into); },
            "gate_up"_a, "activation"_a, "into"_a, nb::keep_alive<0, 1>())
        .def("route", &StepProgram::route, "scores"_a, nb::kw_only(), "experts_per_token"_a, "normalized"_a,
             nb::keep_alive<0, 1>())
        .def(
            "experts",
            [](StepProgram& program, const StepValue& routes, const Vector<float>& norm, float eps,
               const std::string& name, const nb::tuple& gate_up, const nb::tuple& down) {
                program.experts(routes, {.norm = copy_of(norm),
                                         .eps = eps,
                                         .activation = activation(name),
                                         .gate_up = expert_runs(gate_up),
                                         .down = expert_runs(down)});
            },
            "routes"_a, "norm"_a.noconvert(), "eps"_a, "activation"_a, "gate_up"_a, "down"_a,
            nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>())
        .def(
            "rotate_and_store",
            [](StepProgram& program, const StepValue& qkv, std::int64_t layer, const Matrix<float>& cos,
               const Matrix<float>& sin, const std::optional<Vector<float>>& query_norm,
               const std::optional<Vector<float>>& key_norm, float eps) {
                return program.rotate_and_store(
                    qkv, layer, rotation(cos, sin, program.shape().head_dim, query_norm, key_norm, eps));
            },
            "qkv"_a, "layer"_a, "cos"_a.noconvert(), "sin"_a.noconvert(), nb::kw_only(),
            "query_norm"_a.noconvert() = nb::none(), "key_norm"_a.noconvert() = nb::none(), "eps"_a = 0.0f,
            nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(), nb::keep_alive<0, 1>())
        .def(
            "store_keys_values",
            [](StepProgram& program, const StepValue& keys_values, std::int64_t layer,
               const Matrix<float>& cos, const Matrix<float>& sin,
               const std::optional<Vector<float>>& key_norm, float eps) {
                program.store_keys_values(
                    keys_values, layer,
                    rotation(cos, sin, program.shape().head_dim, std::nullopt, key_norm, eps));
            },
            "keys_values"_a, "layer"_a, "cos"_a.noconvert(), "sin"_a.noconvert(), nb::kw_only(),
            "key_norm"_a.noconvert() = nb::none(), "eps"_a = 0.0f, nb::keep_alive<1, 4>(),
            nb::keep_alive<1, 5>())
        .def(
            "rotate_queries",
            [](StepProgram& program, const StepValue& queries, const Matrix<float>& cos,
               const Matrix<float>& sin, const std::optional<Vector<float>>& query_norm, float eps) {
                return program.rotate_queries(
                    queries, rotation(cos, sin, program.shape().head_dim, query_norm, std::nullopt, eps));
            },
            "queries"_a, "cos"_a.noconvert(), "sin"_a.noconvert(), nb::kw_only(),
            "query_norm"_a.noconvert() = nb::none(), "eps"_a = 0.0f, nb::keep_alive<1, 3>(),
            nb::keep_alive<1, 4>(), nb::keep_alive<0, 1>())
        .def("attention", &StepProgram::attention, "queries"_a, "layer"_a, nb::kw_only(), "scale"_a,
             "softcap"_a = 0.0f, "window"_a = 0, nb::keep_alive<0, 1>())
        .def("keep_wanted_rows", &StepProgram::keep_wanted_rows)
        .def("head", &StepProgram::head, "rows"_a, "weight"_a, nb::kw_only(), "softcap"_a = 0.0f,
             nb::keep_alive<1, 3>())
        .def("run", &run, "token_ids"_a.noconvert(), "chunks"_a.noconvert(), "blocks"_a.noconvert(),
             "wanted_rows"_a.noconvert(), "cache"_a)
        .def("profile", [](StepProgram& program) {
            nb::dict seconds;
            for (const auto& [kind, time] : program.profile()) seconds[kind.c_str()] = time;
            return seconds;
        });
}

}  // namespace tightpack
