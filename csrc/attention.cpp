#include "attention.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

namespace tightpack {
namespace {

// Rows that share a partition's keys and values while these lie in the first-level cache.
constexpr std::int64_t rows_of_tile = 64;

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

void rotate_and_store(const StoreArguments& arguments, KVCache& cache, std::int64_t layer,
                      const KernelTable& kernels, std::int64_t first_row, std::int64_t last_row) {
    StoreRun run;
    run.stride = arguments.stride;
    run.num_heads = arguments.num_heads;
    run.num_kv_heads = arguments.num_kv_heads;
    run.query_norm = arguments.query_norm;
    run.key_norm = arguments.key_norm;
    run.norm_eps = arguments.norm_eps;
    run.cos = arguments.rotary.cos;
    run.sin = arguments.rotary.sin;
    run.first_head = cache.head(layer, 0);
    run.head_stride = cache.head_stride();
    const auto behind = [](std::int64_t row, const QueryGroup& group) { return row < group.first_query; };
    auto group = std::upper_bound(arguments.groups.begin(), arguments.groups.end(), first_row, behind);
    if (group != arguments.groups.begin()) --group;
    for (; group != arguments.groups.end() && group->first_query < last_row; ++group) {
        const std::int64_t first = std::max<std::int64_t>(first_row, group->first_query);
        const std::int64_t last = std::min<std::int64_t>(last_row, group->first_query + group->num_queries);
        if (first >= last) continue;
        run.rows = arguments.values + first * arguments.stride;
        run.count = last - first;
        run.positions = group->positions + (first - group->first_query);
        run.blocks = group->blocks;
        run.queries = arguments.queries + first * arguments.num_heads * run.first_head.head_dim;
        kernels.rotate_and_store(run);
    }
}

Attention::Attention(const AttentionSpec& spec, int threads) : spec_(spec) {
    if (spec.num_kv_heads < 1 || spec.num_heads < 1 || spec.num_heads % spec.num_kv_heads != 0) {
        throw std::invalid_argument("num_heads " + std::to_string(spec.num_heads) +
                                    " is not a positive multiple of num_kv_heads " +
                                    std::to_string(spec.num_kv_heads));
    }
    if (!(spec.scale > 0))
        throw std::invalid_argument("scale " + std::to_string(spec.scale) + " is not positive");
    heads_ = spec.num_heads / spec.num_kv_heads;
    tile_queries_ = std::max<std::int64_t>(1, rows_of_tile / heads_);
    rows_ = tile_queries_ * heads_;
    padded_dim_ = round_up(spec.head_dim, 16);
    partial_bytes_ = round_up(rows_ * (padded_dim_ + 2) * std::int64_t{sizeof(float)}, 64);
    scratch_ = std::vector<Scratch>(static_cast<std::size_t>(threads));
    for (Scratch& scratch : scratch_) {
        const std::int64_t bytes = partial_bytes_ + attention_scratch_bytes(rows_, padded_dim_);
        scratch.memory = AlignedBuffer(static_cast<std::size_t>(bytes));
    }
}

PartialSoftmax Attention::partial(std::byte* memory) const {
    PartialSoftmax partial;
    partial.weighted = reinterpret_cast<float*>(memory);
    partial.largest = partial.weighted + rows_ * padded_dim_;
    partial.sums = partial.largest + rows_;
    return partial;
}

void Attention::plan(Scratch& scratch, std::span<const QueryGroup> groups) const {
    scratch.tiles.clear();
    scratch.units = 0;
    bool uneven = false;
    for (const QueryGroup& group : groups) {
        for (std::int64_t query = 0; query < group.num_queries; query += tile_queries_) {
            const std::int64_t count = std::min(tile_queries_, group.num_queries - query);
            const std::int64_t first = group.positions[query], last = group.positions[query + count - 1];
            Tile tile;
            tile.group = &group;
            tile.first_query = static_cast<std::int32_t>(query);
            tile.num_queries = static_cast<std::int32_t>(count);
            tile.first_partition =
                spec_.window > 0 ? std::max<std::int64_t>(first - spec_.window + 1, 0) / partition_keys : 0;
            tile.last_partition = last / partition_keys + 1;
            tile.first_unit = scratch.units;
            scratch.units += tile.last_partition - tile.first_partition;
            scratch.tiles.push_back(tile);
            uneven = uneven || count > 1;
        }
    }
    // The longest first, so that threads end together. All threads must agree, so equal ones keep their
    // order.
    if (uneven) {
        const auto cost = [](const Tile& tile) {
            return tile.num_queries * (tile.last_partition - tile.first_partition);
        };
        std::sort(scratch.tiles.begin(), scratch.tiles.end(), [&](const Tile& a, const Tile& b) {
            return cost(a) != cost(b) ? cost(a) > cost(b) : a.first_unit < b.first_unit;
        });
    }
}

AttentionTile Attention::tile_work(const Tile& tile, std::int64_t kv_head, const std::uint16_t* queries,
                                   const KVCache& cache, std::int64_t layer, const Scratch& scratch) const {
    AttentionTile work;
    work.query_stride = spec_.num_heads * spec_.head_dim;
    work.queries = queries + (tile.group->first_query + tile.first_query) * work.query_stride +
                   kv_head * heads_ * spec_.head_dim;
    work.num_queries = tile.num_queries;
    work.heads = heads_;
    work.positions = tile.group->positions + tile.first_query;
    work.blocks = tile.group->blocks;
    work.keys_values = cache.head(layer, kv_head);
    work.scale = spec_.scale;
    work.softcap = spec_.softcap;
    work.window = spec_.window;
    work.scratch = scratch.memory.as<std::byte>() + partial_bytes_;
    return work;
}

void Attention::finish(const Tile& tile, std::int64_t kv_head, std::span<const PartialSoftmax> partials,
                       const KVCache& cache, std::int64_t layer, const KernelTable& kernels,
                       float* out) const {
    AttentionFinish work;
    work.partials = partials.data();
    work.count = static_cast<std::int64_t>(partials.size());
    work.num_queries = tile.num_queries;
    work.heads = heads_;
    work.head_dim = spec_.head_dim;
    work.padded_dim = padded_dim_;
    work.value_scale = cache.head(layer, kv_head).value_scale;
    work.out_stride = spec_.num_heads * spec_.head_dim;
    work.out = out + (tile.group->first_query + tile.first_query) * work.out_stride +
               kv_head * heads_ * spec_.head_dim;
    kernels.finish_attention(work);
}

void Attention::run(ThreadTeam::Member& member, std::span<const QueryGroup> groups,
                    const std::uint16_t* queries, const KVCache& cache, std::int64_t layer,
                    const KernelTable& kernels, float* out) {
    Scratch& scratch = scratch_[static_cast<std::size_t>(member.index())];
    plan(scratch, groups);
    const auto num_tiles = static_cast<std::int64_t>(scratch.tiles.size());
    const std::int64_t heads = spec_.num_kv_heads;
    // Tickets are never taken back: each call draws one for each piece of work and one more for each thread,
    // which tells it that nothing is left.
    const auto share = [&](std::int64_t pieces, const auto& body) {
        for (;;) {
            const std::uint64_t ticket =
                next_ticket_.fetch_add(1, std::memory_order_relaxed) - scratch.tickets;
            if (ticket >= static_cast<std::uint64_t>(pieces)) break;
            body(static_cast<std::int64_t>(ticket));
        }
        scratch.tickets += static_cast<std::uint64_t>(pieces) + static_cast<std::uint64_t>(member.count());
    };

    const bool split =
        num_tiles * heads < 2 * member.count() && scratch.units > num_tiles && member.count() > 1;
    if (!split) {
        const PartialSoftmax state = partial(scratch.memory.as<std::byte>());
        share(num_tiles * heads, [&](std::int64_t piece) {
            const Tile& tile = scratch.tiles[static_cast<std::size_t>(piece % num_tiles)];
            const std::int64_t kv_head = piece / num_tiles;
            AttentionTile work = tile_work(tile, kv_head, queries, cache, layer, scratch);
            work.first_partition = tile.first_partition;
            work.last_partition = tile.last_partition;
            work.state = state;
            // Where all keep pace, the pieces between are the other threads'.
            if (const std::int64_t next = piece + member.count(); next < num_tiles * heads) {
                const Tile& then = scratch.tiles[static_cast<std::size_t>(next % num_tiles)];
                const QueryGroup& group = *then.group;
                work.next_blocks = group.blocks;
                work.next_data = cache.head(layer, next / num_tiles).data;
                work.next_first_key = then.first_partition * partition_keys;
                work.next_keys =
                    group.positions[then.first_query + then.num_queries - 1] + 1 - work.next_first_key;
            }
            kernels.attend(work);
            finish(tile, kv_head, {&state, 1}, cache, layer, kernels, out);
        });
        return;
    }

    // Few queries and long contexts: threads share the partitions of a tile. Each partition's result is kept
    // by itself, since they must be merged one after the other.
    if (member.index() == 0) {
        const auto bytes = static_cast<std::size_t>(scratch.units * heads * partial_bytes_);
        if (split_.size() < bytes) split_ = AlignedBuffer(bytes);
    }
    member.barrier();
    const auto unit_state = [&](std::int64_t kv_head, std::int64_t unit) {
        return partial(split_.as<std::byte>() + (kv_head * scratch.units + unit) * partial_bytes_);
    };
    share(scratch.units * heads, [&](std::int64_t piece) {
        const std::int64_t kv_head = piece / scratch.units, unit = piece % scratch.units;
        const auto holds_unit = [&](const Tile& tile) {
            return tile.first_unit <= unit &&
                   unit < tile.first_unit + tile.last_partition - tile.first_partition;
        };
        const Tile& tile = *std::find_if(scratch.tiles.begin(), scratch.tiles.end(), holds_unit);
        AttentionTile work = tile_work(tile, kv_head, queries, cache, layer, scratch);
        work.first_partition = tile.first_partition + unit - tile.first_unit;
        work.last_partition = work.first_partition + 1;
        work.state = unit_state(kv_head, unit);
        kernels.attend(work);
    });
    member.barrier();
    share(num_tiles * heads, [&](std::int64_t piece) {
        const Tile& tile = scratch.tiles[static_cast<std::size_t>(piece % num_tiles)];
        const std::int64_t kv_head = piece / num_tiles;
        scratch.partials.clear();
        for (std::int64_t p = tile.first_partition; p < tile.last_partition; ++p) {
            scratch.partials.push_back(unit_state(kv_head, tile.first_unit + p - tile.first_partition));
        }
        finish(tile, kv_head, scratch.partials, cache, layer, kernels, out);
    });
}

}  // namespace tightpack
