#include "kv_cache.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace tightpack {
namespace {

using Precision = KVCacheShape::Precision;

constexpr std::int64_t cache_line = 64;
constexpr std::int64_t largest_head_dim = 256;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

std::int64_t code_bytes(Precision precision) {
    return precision == Precision::bf16 ? 2 : 1;
}

void check_positive(const char* name, std::int64_t value) {
    if (value < 1)
        throw std::invalid_argument(std::string(name) + " " + std::to_string(value) + " is not positive");
}

void check_scales(const char* name, const std::vector<float>& scales, const KVCacheShape& shape) {
    if (scales.empty()) return;
    if (shape.precision == Precision::dynamic_int8) {
        throw std::invalid_argument(
            std::string(name) + " are given, but the scales of a dynamic int8 cache come with its positions");
    }
    if (static_cast<std::int64_t>(scales.size()) != shape.num_layers) {
        throw std::invalid_argument(std::to_string(scales.size()) + " " + name + " for " +
                                    std::to_string(shape.num_layers) + " layers");
    }
    for (const float scale : scales) {
        if (!(scale > 0 && std::isfinite(scale))) {
            throw std::invalid_argument(std::string(name) + " hold " + std::to_string(scale) +
                                        ", which is not a positive number");
        }
    }
}

void check(const KVCacheShape& shape) {
    check_positive("num_layers", shape.num_layers);
    check_positive("num_kv_heads", shape.num_kv_heads);
    check_positive("block_size", shape.block_size);
    check_positive("head_dim", shape.head_dim);
    if (shape.block_size % KVHead::tile != 0) {
        throw std::invalid_argument("block_size " + std::to_string(shape.block_size) +
                                    " is not a multiple of 16");
    }
    if (shape.head_dim % 2 != 0 || shape.head_dim > largest_head_dim) {
        throw std::invalid_argument("head_dim " + std::to_string(shape.head_dim) +
                                    " is not an even number up to 256");
    }
    check_scales("key_scales", shape.key_scales, shape);
    check_scales("value_scales", shape.value_scales, shape);
}

KVHead layout(const KVCacheShape& shape) {
    KVHead head;
    head.block_size = shape.block_size;
    head.head_dim = shape.head_dim;
    head.padded_dim = round_up(shape.head_dim, 16);
    head.precision = shape.precision;
    const std::int64_t bytes = code_bytes(shape.precision);
    head.values = round_up(shape.block_size * shape.head_dim * bytes, cache_line);
    head.key_scales = head.values + shape.block_size * head.padded_dim * bytes;
    const bool dynamic = shape.precision == Precision::dynamic_int8;
    head.value_scales = head.key_scales + (dynamic ? shape.block_size * std::int64_t{sizeof(float)} : 0);
    return head;
}

// Where one position of a head lies.
struct Place {
    Place(const KVHead& of, const std::int32_t* blocks, std::int64_t position)
        : head(of),
          code(code_bytes(of.precision)),
          block(of.data + blocks[position / of.block_size] * of.block_stride),
          within(position % of.block_size) {}

    std::byte* key(std::int64_t d) const {
        const std::int64_t tile = within / KVHead::tile, lane = within % KVHead::tile;
        return block + (((tile * head.head_dim / 2 + d / 2) * KVHead::tile + lane) * 2 + d % 2) * code;
    }
    std::byte* value(std::int64_t d) const {
        return block + head.values + ((within / 2 * head.padded_dim + d) * 2 + within % 2) * code;
    }
    float* key_scale() const { return reinterpret_cast<float*>(block + head.key_scales) + within; }
    float* value_scale() const { return reinterpret_cast<float*>(block + head.value_scales) + within; }

    KVHead head;
    std::int64_t code;  // bytes
    std::byte* block;
    std::int64_t within;
};

std::int64_t unit_bytes(const KVHead& head) {
    return head.value_scales + (head.value_scales - head.key_scales);
}

}  // namespace

KVCache::KVCache(const KVCacheShape& shape) : shape_(shape) {
    check(shape);
    check_positive("num_blocks", shape.num_blocks);
    layout_ = layout(shape);
    unit_ = unit_bytes(layout_);
    layout_.block_stride = unit_ * shape.num_kv_heads;
    memory_ = AlignedBuffer(block_bytes(shape) * static_cast<std::size_t>(shape.num_blocks));
}

std::size_t KVCache::block_bytes(const KVCacheShape& shape) {
    check(shape);
    return static_cast<std::size_t>(unit_bytes(layout(shape)) * shape.num_kv_heads * shape.num_layers);
}

KVHead KVCache::head(std::int64_t layer, std::int64_t kv_head) const {
    KVHead head = layout_;
    head.data = memory_.as<std::byte>() + layer * shape_.num_blocks * head.block_stride + kv_head * unit_;
    const auto index = static_cast<std::size_t>(layer);
    if (!shape_.key_scales.empty()) head.key_scale = shape_.key_scales[index];
    if (!shape_.value_scales.empty()) head.value_scale = shape_.value_scales[index];
    return head;
}

void KVCache::read(std::int64_t layer, const std::int32_t* blocks, std::int64_t count, std::byte* keys,
                   std::byte* values, float* key_scales, float* value_scales) const {
    for (std::int64_t position = 0; position < count; ++position) {
        for (std::int64_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
            const Place place(head(layer, kv_head), blocks, position);
            for (std::int64_t d = 0; d < shape_.head_dim; ++d, keys += place.code, values += place.code) {
                std::memcpy(keys, place.key(d), static_cast<std::size_t>(place.code));
                std::memcpy(values, place.value(d), static_cast<std::size_t>(place.code));
            }
            const bool dynamic = shape_.precision == Precision::dynamic_int8;
            *key_scales++ = dynamic ? *place.key_scale() : place.head.key_scale;
            *value_scales++ = dynamic ? *place.value_scale() : place.head.value_scale;
        }
    }
}

void KVCache::clear(const std::int32_t* blocks, std::int64_t first, std::int64_t last) {
    for (std::int64_t layer = 0; layer < shape_.num_layers; ++layer) {
        for (std::int64_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
            for (std::int64_t position = first; position < last; ++position) {
                const Place place(head(layer, kv_head), blocks, position);
                for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
                    std::memset(place.key(d), 0, static_cast<std::size_t>(place.code));
                    std::memset(place.value(d), 0, static_cast<std::size_t>(place.code));
                }
                if (shape_.precision == Precision::dynamic_int8)
                    *place.key_scale() = *place.value_scale() = 0;
            }
        }
    }
}

}  // namespace tightpack
