// Python bindings of the KV cache and of the kernels of attention. Arguments are checked here, the
// interpreter lock is released around the work.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "attention.h"
#include "cpu_features.h"
#include "dequantize.h"
#include "kernel_table.h"
#include "kv_cache.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using tightpack::KVCache;
using tightpack::KVCacheShape;
using tightpack::QueryGroup;

template <class T, int Axes>
using Array = nb::ndarray<const T, nb::ndim<Axes>, nb::c_contig, nb::device::cpu>;
using Positions = Array<std::int32_t, 1>;
// positions, blocks
using Groups = std::vector<std::tuple<Positions, Positions>>;

void require(bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument(message);
}

template <class T>
nb::object empty(const char* dtype, const nb::tuple& shape, T*& data) {
    nb::object result = nb::module_::import_("numpy").attr("empty")(shape, dtype);
    data = nb::cast<nb::ndarray<T, nb::c_contig, nb::device::cpu>>(result).data();
    return result;
}

KVCacheShape::Precision precision(const std::string& name) {
    if (name == "bf16") return KVCacheShape::Precision::bf16;
    if (name == "fp8") return KVCacheShape::Precision::fp8;
    if (name == "int8") return KVCacheShape::Precision::int8;
    if (name == "dynamic_int8") return KVCacheShape::Precision::dynamic_int8;
    throw std::invalid_argument("precision \"" + name + "\" is not one of bf16, fp8, int8, dynamic_int8");
}

KVCacheShape cache_shape(std::int64_t num_layers, std::int64_t num_blocks, std::int64_t block_size,
                         std::int64_t num_kv_heads, std::int64_t head_dim, const std::string& precision_name,
                         const std::vector<float>& key_scales, const std::vector<float>& value_scales) {
    return {precision(precision_name),
            num_layers,
            num_blocks,
            block_size,
            num_kv_heads,
            head_dim,
            key_scales,
            value_scales};
}

void check_layer(const KVCache& cache, std::int64_t layer) {
    require(0 <= layer && layer < cache.shape().num_layers,
            "layer " + std::to_string(layer) + " of " + std::to_string(cache.shape().num_layers));
}

// Blocks enough for positions up to `positions`, all of them in the cache.
void check_blocks(const KVCache& cache, const Positions& blocks, std::int64_t positions) {
    const KVCacheShape& shape = cache.shape();
    const auto count = static_cast<std::int64_t>(blocks.size());
    require(positions <= count * shape.block_size, std::to_string(count) + " blocks of " +
                                                       std::to_string(shape.block_size) +
                                                       " positions do not hold " + std::to_string(positions));
    for (std::int64_t i = 0; i < count; ++i) {
        require(0 <= blocks.data()[i] && blocks.data()[i] < shape.num_blocks,
                "block " + std::to_string(blocks.data()[i]) + " of " + std::to_string(shape.num_blocks));
    }
}

// Rows of the step are the positions of the groups, one group after the other.
std::vector<QueryGroup> query_groups(const KVCache& cache, const Groups& groups, std::int64_t rows) {
    std::vector<QueryGroup> result;
    std::int64_t row = 0;
    for (const auto& [positions, blocks] : groups) {
        const auto count = static_cast<std::int64_t>(positions.size());
        for (std::int64_t i = 0; i < count; ++i) {
            require(positions.data()[i] >= 0 && (i == 0 || positions.data()[i] > positions.data()[i - 1]),
                    "positions of a group must ascend from 0 on");
        }
        check_blocks(cache, blocks, count == 0 ? 0 : std::int64_t{positions.data()[count - 1]} + 1);
        result.push_back({static_cast<std::int32_t>(row), static_cast<std::int32_t>(count), positions.data(),
                          blocks.data()});
        row += count;
    }
    require(row == rows, std::to_string(row) + " positions for " + std::to_string(rows) + " rows");
    return result;
}

void check_threads(int threads) {
    require(threads >= 1 && threads <= tightpack::max_threads, "threads " + std::to_string(threads) +
                                                                   " is not within 1 .. " +
                                                                   std::to_string(tightpack::max_threads));
}

nb::object rotate_and_store(KVCache& cache, std::int64_t layer, const Array<float, 2>& qkv,
                            const Groups& groups, std::int64_t num_heads, std::optional<Array<float, 2>> cos,
                            std::optional<Array<float, 2>> sin, std::optional<Array<float, 1>> query_norm,
                            std::optional<Array<float, 1>> key_norm, float norm_eps, bool keys, int threads,
                            const std::string& instruction_set) {
    const tightpack::KernelTable& kernels =
        tightpack::kernel_table(tightpack::select_instruction_set(instruction_set));
    const KVCacheShape& shape = cache.shape();
    check_layer(cache, layer);
    check_threads(threads);
    const auto rows = static_cast<std::int64_t>(qkv.shape(0)),
               width = static_cast<std::int64_t>(qkv.shape(1));
    const std::vector<QueryGroup> query_group = query_groups(cache, groups, rows);
    tightpack::StoreArguments arguments;
    arguments.groups = query_group;
    arguments.values = qkv.data();
    arguments.stride = width;
    arguments.num_heads = num_heads;
    arguments.num_kv_heads = keys ? shape.num_kv_heads : 0;
    const std::int64_t wanted = (num_heads + 2 * arguments.num_kv_heads) * shape.head_dim;
    require(num_heads >= 0 && width == wanted,
            "qkv is " + std::to_string(width) + " wide; its heads take " + std::to_string(wanted));
    require(cos.has_value() == sin.has_value(), "cos and sin come together");
    if (cos.has_value()) {
        std::int64_t positions = 0;
        for (const QueryGroup& group : query_group) {
            if (group.num_queries == 0) continue;
            positions = std::max<std::int64_t>(positions, group.positions[group.num_queries - 1] + 1);
        }
        for (const auto& table : {*cos, *sin}) {
            require(static_cast<std::int64_t>(table.shape(1)) * 2 == shape.head_dim &&
                        static_cast<std::int64_t>(table.shape(0)) >= positions,
                    "cos and sin must be [" + std::to_string(positions) + " or more, " +
                        std::to_string(shape.head_dim / 2) + "], not [" + std::to_string(table.shape(0)) +
                        ", " + std::to_string(table.shape(1)) + "]");
        }
        arguments.rotary = {cos->data(), sin->data()};
    }
    for (const auto& norm : {query_norm, key_norm}) {
        require(!norm.has_value() || static_cast<std::int64_t>(norm->size()) == shape.head_dim,
                "a norm's weight must be [" + std::to_string(shape.head_dim) + "]");
    }
    if (query_norm.has_value()) arguments.query_norm = query_norm->data();
    if (key_norm.has_value()) arguments.key_norm = key_norm->data();
    arguments.norm_eps = norm_eps;
    nb::object result = empty("uint16", nb::make_tuple(rows, num_heads, shape.head_dim), arguments.queries);
    {
        const nb::gil_scoped_release unlocked;
        tightpack::ThreadTeam team(threads);
        team.run([&](tightpack::ThreadTeam::Member& member) {
            tightpack::rotate_and_store(arguments, cache, layer, kernels,
                                        rows * member.index() / member.count(),
                                        rows * (member.index() + 1) / member.count());
        });
    }
    return result;
}

nb::object attend(const KVCache& cache, std::int64_t layer, const Array<std::uint16_t, 3>& queries,
                  const Groups& groups, float scale, float softcap, std::int64_t window, int threads,
                  const std::string& instruction_set) {
    const tightpack::KernelTable& kernels =
        tightpack::kernel_table(tightpack::select_instruction_set(instruction_set));
    const KVCacheShape& shape = cache.shape();
    check_layer(cache, layer);
    check_threads(threads);
    require(softcap >= 0 && window >= 0, "softcap and window are 0, for none, or positive");
    const auto rows = static_cast<std::int64_t>(queries.shape(0)),
               heads = static_cast<std::int64_t>(queries.shape(1));
    require(static_cast<std::int64_t>(queries.shape(2)) == shape.head_dim,
            "queries have a head_dim of " + std::to_string(queries.shape(2)) + ", the cache one of " +
                std::to_string(shape.head_dim));
    const std::vector<QueryGroup> query_group = query_groups(cache, groups, rows);
    tightpack::Attention attention({heads, shape.num_kv_heads, shape.head_dim, scale, softcap, window},
                                   threads);
    float* out = nullptr;
    nb::object result = empty("float32", nb::make_tuple(rows, heads, shape.head_dim), out);
    {
        const nb::gil_scoped_release unlocked;
        tightpack::ThreadTeam team(threads);
        team.run([&](tightpack::ThreadTeam::Member& member) {
            attention.run(member, query_group, queries.data(), cache, layer, kernels, out);
        });
    }
    return result;
}

void clear_positions(KVCache& cache, const Positions& blocks, std::int64_t first, std::int64_t last) {
    require(0 <= first && first <= last,
            "positions " + std::to_string(first) + " to " + std::to_string(last));
    check_blocks(cache, blocks, last);
    const nb::gil_scoped_release unlocked;
    cache.clear(blocks.data(), first, last);
}

nb::tuple read_codes(const KVCache& cache, std::int64_t layer, const Positions& blocks, std::int64_t count) {
    const KVCacheShape& shape = cache.shape();
    check_layer(cache, layer);
    require(count >= 0, "count " + std::to_string(count) + " is negative");
    check_blocks(cache, blocks, count);
    std::byte* codes[2];
    float* scales[2];
    nb::object arrays[4];
    for (int i = 0; i < 2; ++i) {
        const nb::tuple all = nb::make_tuple(count, shape.num_kv_heads, shape.head_dim);
        if (shape.precision == KVCacheShape::Precision::bf16) {
            std::uint16_t* data = nullptr;
            arrays[i] = empty("uint16", all, data);
            codes[i] = reinterpret_cast<std::byte*>(data);
        } else {
            std::uint8_t* data = nullptr;
            arrays[i] = empty("uint8", all, data);
            codes[i] = reinterpret_cast<std::byte*>(data);
        }
        arrays[2 + i] = empty("float32", nb::make_tuple(count, shape.num_kv_heads), scales[i]);
    }
    cache.read(layer, blocks.data(), count, codes[0], codes[1], scales[0], scales[1]);
    return nb::make_tuple(arrays[0], arrays[1], arrays[2], arrays[3]);
}

}  // namespace

void bind_attention(nb::module_& m) {
    nb::class_<KVCache>(m, "KVCache", R"(Keys and values of all layers, in blocks of positions.)")
        .def(
            "__init__",
            [](KVCache* self, std::int64_t num_layers, std::int64_t num_blocks, std::int64_t block_size,
               std::int64_t num_kv_heads, std::int64_t head_dim, const std::string& precision_name,
               const std::vector<float>& key_scales, const std::vector<float>& value_scales) {
                new (self) KVCache(cache_shape(num_layers, num_blocks, block_size, num_kv_heads, head_dim,
                                               precision_name, key_scales, value_scales));
            },
            nb::kw_only(), "num_layers"_a, "num_blocks"_a, "block_size"_a, "num_kv_heads"_a, "head_dim"_a,
            "precision"_a = "bf16", "key_scales"_a = std::vector<float>(),
            "value_scales"_a = std::vector<float>())
        .def_static(
            "block_bytes",
            [](std::int64_t num_layers, std::int64_t block_size, std::int64_t num_kv_heads,
               std::int64_t head_dim, const std::string& precision_name) {
                return KVCache::block_bytes(
                    cache_shape(num_layers, 1, block_size, num_kv_heads, head_dim, precision_name, {}, {}));
            },
            nb::kw_only(), "num_layers"_a, "block_size"_a, "num_kv_heads"_a, "head_dim"_a,
            "precision"_a = "bf16")
        .def_prop_ro("num_bytes", &KVCache::num_bytes)
        .def_prop_ro("num_blocks", [](const KVCache& cache) { return cache.shape().num_blocks; })
        .def_prop_ro("block_size", [](const KVCache& cache) { return cache.shape().block_size; })
        .def("read", &read_codes, "layer"_a, "blocks"_a.noconvert(), "count"_a)
        .def("clear", &clear_positions, "blocks"_a.noconvert(), "first"_a, "last"_a);

    m.def("rotate_and_store", &rotate_and_store, "cache"_a, "layer"_a, "qkv"_a.noconvert(), "groups"_a,
          nb::kw_only(), "num_heads"_a, "cos"_a.noconvert() = nb::none(), "sin"_a.noconvert() = nb::none(),
          "query_norm"_a.noconvert() = nb::none(), "key_norm"_a.noconvert() = nb::none(), "norm_eps"_a = 0.0f,
          "keys"_a = true, "threads"_a = 1, "instruction_set"_a = "auto");

    m.def("attend", &attend, "cache"_a, "layer"_a, "queries"_a.noconvert(), "groups"_a, nb::kw_only(),
          "scale"_a, "softcap"_a = 0.0f, "window"_a = 0, "threads"_a = 1, "instruction_set"_a = "auto");
}
