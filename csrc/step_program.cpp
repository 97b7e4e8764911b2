#include "step_program.h"

#include <algorithm>
#include <stdexcept>

#include "pack_linear.h"
#include "step_barriers.h"

namespace tightpack {
namespace {

[[noreturn]] void refuse(std::string_view who, const std::string& why) {
    throw std::invalid_argument(std::string(who) + ": " + why);
}

std::string matrix(const PackedLinear& weight) {
    // Appended to: gcc 12 warns of overlapping copies where a literal is put before a temporary (PR 105329).
    std::string text = "[";
    return text.append(std::to_string(weight.outputs)).append(", ").append(std::to_string(weight.inputs)) + "]";
}

StepProgram::Shape checked(const StepProgram::Shape& shape) {
    const auto positive = [](std::int64_t number, const char* name) {
        if (number < 1) refuse("Program", std::string(name) + " " + std::to_string(number) + " is below 1");
    };
    positive(shape.hidden_size, "hidden_size");
    positive(shape.num_heads, "num_heads");
    positive(shape.num_kv_heads, "num_kv_heads");
    positive(shape.head_dim, "head_dim");
    if (shape.num_heads % shape.num_kv_heads != 0) {
        refuse("Program", "num_heads " + std::to_string(shape.num_heads) +
                              " is no multiple of num_kv_heads " + std::to_string(shape.num_kv_heads));
    }
    if (shape.head_dim % 2 != 0) refuse("Program", "head_dim " + std::to_string(shape.head_dim) + " is odd");
    return shape;
}

}  // namespace

StepProgram::StepProgram(std::shared_ptr<ThreadTeam> team, const Shape& shape, InstructionSet set, bool timed)
    : team_(std::move(team)),
      shape_(checked(shape)),
      set_(set),
      timed_(timed),
      storage_(team_->count()),
      state_{.kernels = kernel_table(set), .storage = storage_},
      expert_scratch_(team_->count()) {}

StepValue StepProgram::add_value(const ValueShape& shape) {
    const int number = storage_.add(shape);
    values_.push_back({.set = rows_});
    return {.program = this, .number = number, .width = shape.width};
}

StepValue StepProgram::add_rows(const RowFormat& format, std::int64_t width, std::string_view who) {
    if (format.width != width) {
        refuse(who, "the row format is for " + std::to_string(format.width) + " numbers, the rows have " +
                        std::to_string(width));
    }
    return add_value({.kind = ValueShape::Kind::rows, .width = width, .format = format});
}

template <class Made>
Made& StepProgram::record(Made operation) {
    operation.set = rows_;
    operation.index = operations_.size();
    for (const Access& access : operation.accesses()) {
        if (access.value < 0) continue;
        storage_.use(access.value, static_cast<int>(operation.index));
        if (access.writes) values_[static_cast<std::size_t>(access.value)].written = true;
    }
    operations_.push_back(std::make_unique<Made>(std::move(operation)));
    return static_cast<Made&>(*operations_.back());
}

void StepProgram::check_open(std::string_view who) const {
    if (vocabulary_ > 0) refuse(who, "the program is complete: head was its last operation");
    if (!residual_) refuse(who, "embed comes first: there is no residual stream yet");
}

void StepProgram::check_mine(const StepValue& value, std::string_view who) const {
    if (value.program != this) refuse(who, "the value was made by another program");
    if (values_[static_cast<std::size_t>(value.number)].set != rows_) {
        refuse(who, "the value was made before keep_wanted_rows, for rows that are gone");
    }
}

void StepProgram::check_read(const StepValue& value, ValueShape::Kind kind, std::int64_t width,
                             std::string_view who) const {
    check_open(who);
    check_mine(value, who);
    ValueShape wanted{.kind = kind, .width = width};
    const ValueShape& shape = storage_.shape(value.number);
    if (shape.kind != kind || shape.width != width) {
        if (kind == ValueShape::Kind::rows) {
            const std::string rows = "rounded rows of " + std::to_string(width) + " numbers";
            refuse(who, "wants " + rows + ", got " + describe(shape));
        }
        refuse(who, "wants " + describe(wanted) + ", got " + describe(shape));
    }
    if (!values_[static_cast<std::size_t>(value.number)].written) {
        refuse(who, "nothing has been written to " + describe(shape));
    }
}

void StepProgram::check_norm(const std::vector<float>& weight, std::int64_t width,
                             std::string_view who) const {
    if (static_cast<std::int64_t>(weight.size()) == width) return;
    refuse(who, "the norm's weight has " + std::to_string(weight.size()) + " numbers, the rows have " +
                    std::to_string(width));
}

void StepProgram::embed(const PackedLinear& table, float scale) {
    if (residual_) refuse("embed", "the program has an embedding already");
    if (table.inputs != shape_.hidden_size) {
        refuse("embed",
               "the table is " + matrix(table) + ", hidden_size is " + std::to_string(shape_.hidden_size));
    }
    residual_ = add_value({.width = shape_.hidden_size}).number;
    num_tokens_ = table.outputs;
    Embed made;
    made.residual = *residual_;
    made.table = &table;
    made.scale = scale;
    record(std::move(made));
}

StepValue StepProgram::norm(std::vector<float> weight, float eps, const RowFormat& into) {
    check_open("norm");
    check_norm(weight, shape_.hidden_size, "norm");
    const StepValue out = add_rows(into, shape_.hidden_size, "norm");
    Norm made;
    made.residual = *residual_;
    made.out = out.number;
    made.weight = std::move(weight);
    made.eps = eps;
    record(std::move(made));
    return out;
}

StepValue StepProgram::quantize(const StepValue& values, const RowFormat& into) {
    check_read(values, ValueShape::Kind::fp32, into.width, "quantize");
    const StepValue out = add_rows(into, into.width, "quantize");
    Quantize made;
    made.in = values.number;
    made.out = out.number;
    record(std::move(made));
    return out;
}

StepValue StepProgram::buffer(std::int64_t width) {
    check_open("buffer");
    return add_value({.width = width});
}

Linear StepProgram::make_linear(const StepValue& rows, const PackedLinear& weight, LinearOptions options) {
    const std::string who = options.name;
    check_read(rows, ValueShape::Kind::rows, weight.inputs, who);
    const RowFormat& format = storage_.shape(rows.number).format;
    if (const std::string why = reason_against(weight, format); !why.empty()) refuse(who, why);
    if (!options.bias.empty() && static_cast<std::int64_t>(options.bias.size()) != weight.outputs) {
        refuse(who, "the bias has " + std::to_string(options.bias.size()) + " numbers, the weight is " +
                        matrix(weight));
    }
    const auto [first, last] = options.outputs.value_or(std::pair{std::int64_t{0}, weight.outputs});
    const bool whole_panels =
        first % PackedLinear::panel == 0 && (last % PackedLinear::panel == 0 || last == weight.outputs);
    if (first < 0 || first >= last || last > weight.outputs || !whole_panels) {
        refuse(who, "outputs " + std::to_string(first) + " to " + std::to_string(last) +
                        " are no whole panels of 16 of a weight " + matrix(weight));
    }
    Linear made;
    made.in = rows.number;
    made.weight = &weight;
    made.bias = std::move(options.bias);
    made.first_output = first;
    made.last_output = last;
    made.name = std::move(options.name);
    return made;
}

StepValue StepProgram::linear(const StepValue& rows, const PackedLinear& weight, LinearOptions options) {
    const std::optional<StepValue> given = options.out;
    const std::int64_t first_column = options.first_column;
    Linear made = make_linear(rows, weight, std::move(options));
    const std::int64_t columns = made.last_output - made.first_output;
    const StepValue out = given ? *given : add_value({.width = columns});
    if (given) check_mine(out, made.name);
    const ValueShape& shape = storage_.shape(out.number);
    if (shape.kind != ValueShape::Kind::fp32 || first_column < 0 || first_column + columns > shape.width) {
        refuse(made.name, std::to_string(columns) + " outputs from column " + std::to_string(first_column) +
                              " on do not fit into " + describe(shape));
    }
    made.out = out.number;
    made.first_column = first_column;
    record(std::move(made));
    return out;
}

void StepProgram::linear_add(const StepValue& rows, const PackedLinear& weight, LinearOptions options) {
    Linear made = make_linear(rows, weight, std::move(options));
    if (weight.outputs != shape_.hidden_size) {
        refuse(made.name, "the weight is " + matrix(weight) + ", the residual stream has " +
                              std::to_string(shape_.hidden_size) + " numbers");
    }
    made.out = *residual_;
    made.accumulate = true;
    record(std::move(made));
}

void StepProgram::norm_add(const StepValue& values, std::vector<float> weight, float eps) {
    check_read(values, ValueShape::Kind::fp32, shape_.hidden_size, "norm_add");
    check_norm(weight, shape_.hidden_size, "norm_add");
    NormAdd made;
    made.residual = *residual_;
    made.in = values.number;
    made.weight = std::move(weight);
    made.eps = eps;
    record(std::move(made));
}

StepValue StepProgram::gate(const StepValue& gate_up, Gate::Activation activation, const RowFormat& into) {
    check_read(gate_up, ValueShape::Kind::fp32, 2 * into.width, "gate");
    const StepValue out = add_rows(into, into.width, "gate");
    Gate made;
    made.in = gate_up.number;
    made.out = out.number;
    made.activation = activation;
    made.width = into.width;
    record(std::move(made));
    return out;
}

StepValue StepProgram::route(const StepValue& scores, std::int64_t experts_per_token, bool normalized) {
    check_read(scores, ValueShape::Kind::fp32, scores.width, "route");
    if (experts_per_token < 1 || experts_per_token > scores.width) {
        refuse("route", std::to_string(experts_per_token) + " experts a token of " +
                            std::to_string(scores.width) + " scores");
    }
    const StepValue out = add_value({.width = 2 * experts_per_token});
    Route made;
    made.scores = scores.number;
    made.out = out.number;
    made.used = experts_per_token;
    made.normalized = normalized;
    record(std::move(made));
    return out;
}

ExpertLinear StepProgram::expert_linear(const ExpertRuns& runs, std::int64_t inputs, std::int64_t outputs,
                                        std::string_view who) {
    ExpertLinear made;
    for (const auto& [weight, format] : runs) {
        if (weight->inputs != inputs || format.width != inputs) {
            refuse(who, "the weight is " + matrix(*weight) + " and the row format for " +
                            std::to_string(format.width) + " numbers, the rows have " +
                            std::to_string(inputs));
        }
        if (const std::string why = reason_against(*weight, format); !why.empty()) refuse(who, why);
        const auto same = std::ranges::find(made.inputs, format, &ExpertLinear::Input::format);
        const auto input = static_cast<std::size_t>(same - made.inputs.begin());
        if (same == made.inputs.end()) {
            const auto earlier = std::ranges::count_if(made.inputs, [&](const ExpertLinear::Input& other) {
                return ExpertScratch::alike(other.format, format);
            });
            made.inputs.push_back({format, expert_scratch_.rows_like(format, static_cast<int>(earlier))});
        }
        made.runs.push_back({.weight = weight, .input = input, .first_output = made.outputs});
        made.outputs += weight->outputs;
    }
    if (made.outputs != outputs) {
        refuse(who, "the weights have " + std::to_string(made.outputs) + " outputs, " +
                        std::to_string(outputs) + " are wanted");
    }
    return made;
}

void StepProgram::experts(const StepValue& routes, Mixture mixture) {
    check_read(routes, ValueShape::Kind::fp32, routes.width, "experts");
    check_norm(mixture.norm, shape_.hidden_size, "experts");
    const auto* route = operations_.empty() ? nullptr : dynamic_cast<const Route*>(operations_.back().get());
    if (route == nullptr || route->out != routes.number) refuse("experts", "route comes directly before it");
    const std::int64_t count = storage_.shape(route->scores).width;
    if (static_cast<std::int64_t>(mixture.gate_up.size()) != count || mixture.down.size() != mixture.gate_up.size()) {
        refuse("experts", std::to_string(mixture.gate_up.size()) + " gate_up and " +
                              std::to_string(mixture.down.size()) + " down for " + std::to_string(count) +
                              " scores");
    }
    MixExperts made;
    made.inner = mixture.down.front().empty() ? 0 : mixture.down.front().front().first->inputs;
    for (std::size_t expert = 0; expert < mixture.down.size(); ++expert) {
        const std::string who = "expert " + std::to_string(expert);
        made.gate_up.push_back(
            expert_linear(mixture.gate_up[expert], shape_.hidden_size, 2 * made.inner, who + "'s gate_up"));
        made.down.push_back(
            expert_linear(mixture.down[expert], made.inner, shape_.hidden_size, who + "'s down"));
    }
    made.residual = *residual_;
    made.routes = routes.number;
    made.used = route->used;
    made.norm = std::move(mixture.norm);
    made.eps = mixture.eps;
    made.activation = mixture.activation;
    made.scratch = &expert_scratch_;
    expert_scratch_.fit(made.used, shape_.hidden_size, made.inner);
    record(std::move(made));
}

std::optional<int> StepProgram::store(const StepValue& in, std::optional<std::int64_t> layer, bool queries,
                                      Rotation rotation, std::string_view who) {
    const std::int64_t heads = (queries ? shape_.num_heads : 0) + (layer ? 2 * shape_.num_kv_heads : 0);
    check_read(in, ValueShape::Kind::fp32, heads * shape_.head_dim, who);
    if (!rotation.query_norm.empty()) check_norm(rotation.query_norm, shape_.head_dim, who);
    if (!rotation.key_norm.empty()) check_norm(rotation.key_norm, shape_.head_dim, who);
    if (layer && *layer < 0) refuse(who, "layer " + std::to_string(*layer) + " is negative");
    num_positions_ = std::min(num_positions_, rotation.positions);
    if (layer) num_layers_ = std::max(num_layers_, *layer + 1);
    Store made;
    made.in = in.number;
    if (queries) {
        const std::int64_t width = shape_.num_heads * shape_.head_dim;
        made.queries = add_value({.kind = ValueShape::Kind::bf16, .width = width}).number;
    }
    made.layer = layer;
    made.num_heads = shape_.num_heads;
    made.num_kv_heads = shape_.num_kv_heads;
    made.rotary = rotation.table;
    made.query_norm = std::move(rotation.query_norm);
    made.key_norm = std::move(rotation.key_norm);
    made.eps = rotation.eps;
    return record(std::move(made)).queries;
}

StepValue StepProgram::rotate_and_store(const StepValue& qkv, std::int64_t layer, Rotation rotation) {
    const int queries = *store(qkv, layer, true, std::move(rotation), "rotate_and_store");
    return {.program = this, .number = queries, .width = storage_.shape(queries).width};
}

void StepProgram::store_keys_values(const StepValue& keys_values, std::int64_t layer, Rotation rotation) {
    store(keys_values, layer, false, std::move(rotation), "store_keys_values");
}

StepValue StepProgram::rotate_queries(const StepValue& queries, Rotation rotation) {
    const int rotated = *store(queries, std::nullopt, true, std::move(rotation), "rotate_queries");
    return {.program = this, .number = rotated, .width = storage_.shape(rotated).width};
}

Attention* StepProgram::attention_of(const AttentionSpec& spec) {
    // Layers that are alike share one, and so its scratch memory.
    for (const auto& [other, attention] : attentions_) {
        if (other.scale == spec.scale && other.softcap == spec.softcap && other.window == spec.window) {
            return attention.get();
        }
    }
    attentions_.emplace_back(spec, std::make_unique<Attention>(spec, team_->count()));
    return attentions_.back().second.get();
}

StepValue StepProgram::attention(const StepValue& queries, std::int64_t layer, float scale, float softcap,
                                 std::int64_t window) {
    const std::int64_t width = shape_.num_heads * shape_.head_dim;
    check_read(queries, ValueShape::Kind::bf16, width, "attention");
    if (layer < 0 || layer >= num_layers_) {
        refuse("attention", "no keys and values were stored for layer " + std::to_string(layer));
    }
    if (softcap < 0 || window < 0) {
        refuse("attention", "softcap " + std::to_string(softcap) + " and window " + std::to_string(window) +
                                " are to be positive, or 0 for none");
    }
    Attend made;
    made.queries = queries.number;
    const StepValue out = add_value({.width = width});
    made.out = out.number;
    made.layer = layer;
    made.attention = attention_of({.num_heads = shape_.num_heads,
                                   .num_kv_heads = shape_.num_kv_heads,
                                   .head_dim = shape_.head_dim,
                                   .scale = scale,
                                   .softcap = softcap,
                                   .window = window});
    record(std::move(made));
    return out;
}

void StepProgram::keep_wanted_rows() {
    check_open("keep_wanted_rows");
    if (rows_ == RowSet::wanted) refuse("keep_wanted_rows", "the other rows are gone already");
    // The operation itself reads all rows and counts as one on those it writes.
    rows_ = RowSet::wanted;
    KeepWantedRows made;
    made.residual = *residual_;
    made.out = add_value({.width = shape_.hidden_size}).number;
    residual_ = made.out;
    record(std::move(made));
}

void StepProgram::head(const StepValue& rows, const PackedLinear& weight, float softcap) {
    Linear made = make_linear(rows, weight, {.name = "head"});
    if (rows_ != RowSet::wanted) refuse("head", "keep_wanted_rows comes before it");
    if (softcap < 0)
        refuse("head", "softcap " + std::to_string(softcap) + " is to be positive, or 0 for none");
    made.softcap = softcap;
    record(std::move(made));
    vocabulary_ = weight.outputs;
    keep_values_to_threads();
    storage_.lay_out();
    barriers_ = barriers(operations_, storage_, false);
    single_row_barriers_ = barriers(operations_, storage_, true);
    state_.taken = std::make_unique<std::atomic<std::int64_t>[]>(operations_.size());
    seconds_.assign(operations_.size(), 0.0);
    std::int64_t widest = 0;
    for (std::size_t value = 0; value < values_.size(); ++value) {
        widest = std::max(widest, storage_.shape(static_cast<int>(value)).width);
    }
    for (int thread = 0; thread < team_->count(); ++thread) {
        state_.scratch.emplace_back(static_cast<std::size_t>(widest) * sizeof(float));
    }
}

void StepProgram::keep_values_to_threads() {
    // Between which operations on all rows together, counted, a value is in use; none where it is in use on
    // both sides of one.
    std::map<int, std::optional<int>> between;
    int passed = 0;
    for (const auto& operation : operations_) {
        const bool alone = operation->row_by_row() && operation->set == RowSet::all;
        if (!alone) ++passed;
        for (const Access& access : operation->accesses()) {
            if (access.value < 0 || storage_.shape(access.value).kind != ValueShape::Kind::fp32) continue;
            const auto [place, is_new] = between.try_emplace(access.value, passed);
            if (!alone || (!is_new && place->second != passed)) place->second.reset();
        }
    }
    for (const auto& [value, place] : between) {
        if (place) storage_.keep_to_threads(value);
    }
}

std::vector<std::string> StepProgram::operations() const {
    std::vector<std::string> lines;
    for (const auto& operation : operations_) {
        std::string from, to;
        const auto append = [](std::string& list, const std::string& item) {
            list += (list.empty() ? "" : ", ") + item;
        };
        for (const Access& access : operation->accesses()) {
            const std::string item = access.value >= 0
                                         ? describe(storage_.shape(access.value))
                                         : "cache of layer " + std::to_string(-1 - access.value);
            append(access.writes ? to : from, item);
        }
        std::string line(operation->kind());
        if (!from.empty()) line += " " + from;
        lines.push_back(line + " -> " + (to.empty() ? "logits [" + std::to_string(vocabulary_) + "]" : to));
    }
    return lines;
}

int StepProgram::num_barriers(std::int64_t rows) const {
    int count = 0;
    for (std::size_t i = 0; i < operations_.size(); ++i) count += waits_before(i, rows);
    return count;
}

std::map<std::string, double, std::less<>> StepProgram::profile() {
    std::map<std::string, double, std::less<>> total;
    for (std::size_t i = 0; i < seconds_.size(); ++i)
        total[std::string(operations_[i]->kind())] += seconds_[i];
    std::ranges::fill(seconds_, 0.0);
    return total;
}

}  // namespace tightpack
