#include "pack_linear.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "half.h"
#include "parallel_for.h"

namespace tightpack {
namespace {

constexpr std::int64_t lanes = PackedLinear::panel;

// Which part, and which row of it, an output is.
template <class Part>
struct Place {
    const Part* part = nullptr;  // null behind the last output
    std::int64_t row = 0;
};

template <class Part>
std::int64_t total_outputs(const std::vector<Part>& parts) {
    if (parts.empty()) throw std::invalid_argument("there is nothing to pack: parts is empty");
    std::int64_t sum = 0;
    for (const Part& part : parts) sum += part.outputs;
    return sum;
}

template <class Part>
std::array<Place<Part>, lanes> places_of(const std::vector<Part>& parts, std::int64_t panel) {
    std::array<Place<Part>, lanes> places{};
    std::int64_t first = 0;
    for (const Part& part : parts) {
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            const std::int64_t row = panel * lanes + lane - first;
            if (row >= 0 && row < part.outputs) places[static_cast<std::size_t>(lane)] = {&part, row};
        }
        first += part.outputs;
    }
    return places;
}

// Calls body(panel, places) for all panels, on several threads.
template <class Part, class Body>
void for_each_panel(const PackedLinear& w, const std::vector<Part>& parts, int threads, const Body& body) {
    parallel_for(w.panels(), 4, threads, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t panel = first; panel < last; ++panel) body(panel, places_of(parts, panel));
    });
}

std::uint8_t* codes_of(const PackedLinear& w, std::int64_t panel) {
    return w.data.as<std::uint8_t>() + panel * w.panel_bytes();
}

std::size_t bytes(std::int64_t count) {
    return static_cast<std::size_t>(count);
}

void allocate_codes(PackedLinear& w, Arena& arena) {
    w.data = arena.take(bytes(w.panels() * w.panel_bytes()));
}

// Eight codes of a lane at k, as the layout has them. eight: one code a byte.
void put_uint4(std::uint8_t* panel, std::int64_t k, std::size_t lane, std::uint64_t eight) {
    const auto four = static_cast<std::uint32_t>(eight) | static_cast<std::uint32_t>(eight >> 32) << 4;
    std::memcpy(panel + k * 8 + static_cast<std::int64_t>(lane) * 4, &four, sizeof four);
}

void put_uint8(std::uint8_t* panel, std::int64_t k, std::size_t lane, std::uint32_t four) {
    std::memcpy(panel + k * 16 + static_cast<std::int64_t>(lane) * 4, &four, sizeof four);
}

// `count` codes of at most 8, zeros behind them.
std::uint64_t load_codes(const std::uint8_t* from, std::int64_t count) {
    std::uint64_t codes = 0;
    std::memcpy(&codes, from, bytes(std::min<std::int64_t>(count, 8)));
    return codes;
}

constexpr std::uint64_t in_each_byte = 0x0101010101010101u;

// Signed codes raised to be unsigned, byte by byte.
std::uint64_t raised(std::uint64_t codes, int bits) {
    if (bits == 8) return codes ^ (0x80u * in_each_byte);
    // -8 .. 7 in two's complement: the low four bits with the highest of them turned over.
    return (codes & (0x0fu * in_each_byte)) ^ (0x08u * in_each_byte);
}

// The power of two that scales are divided by, so that the largest fills what fp16 has above 1.
float scale_unit(float largest) {
    if (!(largest > 0) || !std::isfinite(largest)) return 1;
    return std::exp2(static_cast<float>(std::ilogb(largest)) - 14);
}

}  // namespace

PackedLinear pack_dense(const std::vector<DensePart>& parts, std::int64_t inputs, int threads, Arena& arena) {
    PackedLinear w;
    w.codes = PackedLinear::Codes::bf16;
    w.outputs = total_outputs(parts);
    w.inputs = inputs;
    allocate_codes(w, arena);
    for_each_panel(w, parts, threads, [&](std::int64_t panel, const auto& places) {
        auto* out = reinterpret_cast<std::uint16_t*>(codes_of(w, panel));
        for (std::size_t lane = 0; lane < places.size(); ++lane) {
            const auto [part, row] = places[lane];
            if (part == nullptr) continue;
            for (std::int64_t k = 0; k < inputs; ++k) {
                const std::int64_t at = row * inputs + k;
                std::uint16_t value = 0;
                switch (part->type) {
                    case DensePart::Type::bfloat16:
                        value = static_cast<const std::uint16_t*>(part->values)[at];
                        break;
                    case DensePart::Type::float16:
                        value = to_bf16(from_half(static_cast<const std::uint16_t*>(part->values)[at]));
                        break;
                    case DensePart::Type::float32:
                        value = to_bf16(static_cast<const float*>(part->values)[at]);
                        break;
                }
                out[k / 2 * 32 + static_cast<std::int64_t>(lane) * 2 + k % 2] = value;
            }
        }
    });
    return w;
}

PackedLinear pack_int(const std::vector<IntPart>& parts, std::int64_t inputs, int bits, std::int64_t group,
                      int threads, Arena& arena) {
    if (bits != 4 && bits != 8) throw std::invalid_argument("bits must be 4 or 8, not " + std::to_string(bits));
    if (group < 1) throw std::invalid_argument("group must be at least 1, not " + std::to_string(group));
    PackedLinear w;
    w.codes = bits == 4 ? PackedLinear::Codes::uint4 : PackedLinear::Codes::uint8;
    w.outputs = total_outputs(parts);
    w.inputs = inputs;
    const IntPart& model = parts.front();
    for (const IntPart& part : parts) {
        if ((part.zeros == nullptr) != (model.zeros == nullptr) ||
            (part.minimums == nullptr) != (model.minimums == nullptr)) {
            throw std::invalid_argument("parts must all have zero-points, all have minimums, or none of them");
        }
    }
    if (model.zeros != nullptr && model.minimums != nullptr) {
        throw std::invalid_argument("weights have zero-points or minimums, not both");
    }
    w.offsets = model.zeros != nullptr      ? PackedLinear::Offsets::zeros
                : model.minimums != nullptr ? PackedLinear::Offsets::minimums
                                            : PackedLinear::Offsets::symmetric;
    const bool symmetric = w.offsets == PackedLinear::Offsets::symmetric;
    const std::int64_t stored_groups = (inputs + group - 1) / group;
    // How many of the packed groups one stored group is.
    std::int64_t split = 1;
    if (stored_groups == 1 && !symmetric) {
        // Offsets are made good by group, beside scales; so one of the whole row is repeated for each 64.
        for (const std::int64_t size : {64, 32, 16, 8}) {
            if (inputs % size == 0) {
                split = inputs / size;
                break;
            }
        }
        group = inputs / split;
    }
    const bool by_output = stored_groups == 1 && symmetric;
    w.group = by_output ? w.padded_inputs() : group;
    if (!by_output && (group % w.depth() != 0 || inputs % group != 0)) {
        throw std::invalid_argument("groups of " + std::to_string(group) + " do not fit " +
                                    std::to_string(inputs) + " inputs in steps of " +
                                    std::to_string(w.depth()));
    }
    allocate_codes(w, arena);
    const std::int64_t groups = by_output ? 0 : inputs / group;
    if (by_output) {
        w.channel_scales = arena.take(bytes(w.panels() * lanes * 4));
    } else {
        float largest = 0;
        for (const IntPart& part : parts) {
            for (std::int64_t i = 0; i < part.outputs * stored_groups; ++i) {
                largest = std::max(largest, std::fabs(part.scales[i]));
                if (part.minimums != nullptr) largest = std::max(largest, std::fabs(part.minimums[i]));
            }
        }
        w.scale_unit = scale_unit(largest);
        w.group_scales = arena.take(bytes(w.panels() * groups * lanes * 2));
        if (model.zeros != nullptr) w.zeros = arena.take(bytes(w.panels() * groups * lanes));
        if (model.minimums != nullptr) w.minimums = arena.take(bytes(w.panels() * groups * lanes * 2));
    }
    for_each_panel(w, parts, threads, [&](std::int64_t panel, const auto& places) {
        std::uint8_t* out = codes_of(w, panel);
        for (std::size_t lane = 0; lane < places.size(); ++lane) {
            const auto [part, row] = places[lane];
            if (part == nullptr) continue;
            const std::uint8_t* codes = part->codes + row * inputs;
            for (std::int64_t k = 0; k < inputs; k += 8) {
                std::uint64_t eight = load_codes(codes + k, inputs - k);
                if (symmetric) eight = raised(eight, bits);
                if (bits == 4) {
                    put_uint4(out, k, lane, eight);
                } else {
                    put_uint8(out, k, lane, static_cast<std::uint32_t>(eight));
                    if (k + 4 < w.padded_inputs()) {
                        put_uint8(out, k + 4, lane, static_cast<std::uint32_t>(eight >> 32));
                    }
                }
            }
            if (by_output) {
                w.channel_scales.as<float>()[panel * lanes + static_cast<std::int64_t>(lane)] = part->scales[row];
                continue;
            }
            for (std::int64_t g = 0; g < groups; ++g) {
                const std::int64_t from = row * stored_groups + g / split;
                const std::int64_t to = (panel * groups + g) * lanes + static_cast<std::int64_t>(lane);
                w.group_scales.as<std::uint16_t>()[to] = to_half(part->scales[from] / w.scale_unit);
                if (part->zeros != nullptr) w.zeros.as<std::uint8_t>()[to] = part->zeros[from];
                if (part->minimums != nullptr) {
                    w.minimums.as<std::uint16_t>()[to] = to_half(part->minimums[from] / w.scale_unit);
                }
            }
        }
    });
    return w;
}

PackedLinear pack_fp8(const std::vector<Fp8Part>& parts, std::int64_t inputs, int threads, Arena& arena) {
    PackedLinear w;
    w.codes = PackedLinear::Codes::fp8;
    w.outputs = total_outputs(parts);
    w.inputs = inputs;
    const std::int64_t columns = std::min(parts.front().columns, inputs);
    for (const Fp8Part& part : parts) {
        if (std::min(part.columns, inputs) != columns) {
            throw std::invalid_argument("parts have blocks of different widths: " +
                                        std::to_string(part.columns) + " and " + std::to_string(columns));
        }
    }
    const bool by_output = columns >= inputs;
    if (!by_output && (columns % 2 != 0 || inputs % columns != 0)) {
        throw std::invalid_argument("blocks of " + std::to_string(columns) + " columns do not fit " +
                                    std::to_string(inputs) + " inputs");
    }
    w.group = by_output ? w.padded_inputs() : columns;
    allocate_codes(w, arena);
    const std::int64_t groups = by_output ? 1 : inputs / columns;
    if (by_output) {
        w.channel_scales = arena.take(bytes(w.panels() * lanes * 4));
    } else {
        float largest = 0;
        for (const Fp8Part& part : parts) {
            const std::int64_t count = (part.outputs + part.rows - 1) / part.rows * groups;
            for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(part.scales[i]));
        }
        w.scale_unit = scale_unit(largest);
        w.group_scales = arena.take(bytes(w.panels() * groups * lanes * 2));
    }
    for_each_panel(w, parts, threads, [&](std::int64_t panel, const auto& places) {
        std::uint8_t* out = codes_of(w, panel);
        for (std::size_t lane = 0; lane < places.size(); ++lane) {
            const auto [part, row] = places[lane];
            if (part == nullptr) continue;
            const auto at = static_cast<std::int64_t>(lane);
            const std::uint8_t* codes = part->codes + row * inputs;
            for (std::int64_t k = 0; k < inputs; ++k) out[k / 2 * 32 + at * 2 + k % 2] = codes[k];
            const float* scales = part->scales + row / part->rows * groups;
            if (by_output) {
                w.channel_scales.as<float>()[panel * lanes + at] = scales[0];
                continue;
            }
            for (std::int64_t g = 0; g < groups; ++g) {
                w.group_scales.as<std::uint16_t>()[(panel * groups + g) * lanes + at] =
                    to_half(scales[g] / w.scale_unit);
            }
        }
    });
    return w;
}

PackedLinear pack_blocks(const std::vector<BlockPart>& parts, std::int64_t inputs, const std::string& precision,
                         int threads, Arena& arena) {
    constexpr std::int64_t block = 32;
    const bool is_q4_1 = precision == "q4_1", is_q8_0 = precision == "q8_0";
    if (!is_q4_1 && !is_q8_0 && precision != "q4_0") {
        throw std::invalid_argument("precision \"" + precision + "\" cannot be packed; q4_0, q4_1, q8_0 can");
    }
    if (inputs % block != 0) {
        throw std::invalid_argument(std::to_string(inputs) + " inputs are not whole blocks of 32");
    }
    PackedLinear w;
    w.codes = is_q8_0 ? PackedLinear::Codes::uint8 : PackedLinear::Codes::uint4;
    w.offsets = is_q4_1 ? PackedLinear::Offsets::minimums : PackedLinear::Offsets::symmetric;
    w.outputs = total_outputs(parts);
    w.inputs = inputs;
    w.group = block;
    allocate_codes(w, arena);
    const std::int64_t groups = inputs / block;
    w.group_scales = arena.take(bytes(w.panels() * groups * lanes * 2));
    if (is_q4_1) w.minimums = arena.take(bytes(w.panels() * groups * lanes * 2));
    const std::int64_t header = is_q4_1 ? 4 : 2, block_bytes = header + (is_q8_0 ? 32 : 16);
    for_each_panel(w, parts, threads, [&](std::int64_t panel, const auto& places) {
        std::uint8_t* out = codes_of(w, panel);
        for (std::size_t lane = 0; lane < places.size(); ++lane) {
            const auto [part, row] = places[lane];
            if (part == nullptr) continue;
            const std::uint8_t* from = part->blocks + row * groups * block_bytes;
            for (std::int64_t g = 0; g < groups; ++g, from += block_bytes) {
                const std::int64_t to = (panel * groups + g) * lanes + static_cast<std::int64_t>(lane);
                std::memcpy(w.group_scales.as<std::uint16_t>() + to, from, 2);
                if (is_q4_1) std::memcpy(w.minimums.as<std::uint16_t>() + to, from + 2, 2);
                const std::uint8_t* codes = from + header;
                if (is_q8_0) {
                    for (std::int64_t i = 0; i < block; i += 8) {
                        const std::uint64_t eight = raised(load_codes(codes + i, 8), 8);
                        put_uint8(out, g * block + i, lane, static_cast<std::uint32_t>(eight));
                        put_uint8(out, g * block + i + 4, lane, static_cast<std::uint32_t>(eight >> 32));
                    }
                    continue;
                }
                // The first half of a block is in the low nibbles of its bytes, the second in the high ones.
                const std::uint64_t left = load_codes(codes, 8), right = load_codes(codes + 8, 8);
                const std::uint64_t low = 0x0fu * in_each_byte;
                put_uint4(out, g * block, lane, left & low);
                put_uint4(out, g * block + 8, lane, right & low);
                put_uint4(out, g * block + 16, lane, left >> 4 & low);
                put_uint4(out, g * block + 24, lane, right >> 4 & low);
            }
        }
    });
    return w;
}

std::string reason_against(const PackedLinear& weights, const RowFormat& rows) {
    if (rows.width != weights.inputs) {
        return "rows of " + std::to_string(rows.width) + " numbers meet weights of " +
               std::to_string(weights.inputs) + " inputs";
    }
    if (rows.codes == RowFormat::Codes::bf16) {
        if (rows.group != 0 && weights.groups() > 0 && rows.groups() > 1 && rows.group % weights.group != 0 &&
            weights.group % rows.group != 0) {
            return "groups of " + std::to_string(rows.group) + " inputs meet weights in groups of " +
                   std::to_string(weights.group);
        }
        return "";
    }
    if (weights.codes != PackedLinear::Codes::uint4 && weights.codes != PackedLinear::Codes::uint8) {
        return "rows of int8 meet weights that are no integers";
    }
    if (weights.groups() > 0 && weights.group % rows.group != 0) {
        return "int8 rows in groups of " + std::to_string(rows.group) + " meet weights in groups of " +
               std::to_string(weights.group) + ", which must be a multiple";
    }
    const bool symmetric = weights.offsets == PackedLinear::Offsets::symmetric;
    const std::int32_t offset = !symmetric ? 0 : weights.codes == PackedLinear::Codes::uint4 ? 8 : 128;
    if (rows.weight_offset != offset) {
        return "weight_offset must be " + std::to_string(offset) + " for these weights, not " +
               std::to_string(rows.weight_offset);
    }
    return "";
}

}  // namespace tightpack
