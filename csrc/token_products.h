// Sums over tokens of the products of two columns of bfloat16: what calibration makes its Hessians of.
#pragma once

#include <cstdint>

namespace tightpack {

// Columns [tokens, width] of bfloat16 bits, a token a row.
struct TokenColumns {
    const std::uint16_t* values;
    std::int64_t tokens;
    std::int64_t width;

    static constexpr std::int64_t panel = 16;

    std::int64_t panels() const { return (width + panel - 1) / panel; }
    // Of pairs of tokens; an odd last one is paired with zeros.
    std::int64_t pairs() const { return (tokens + 1) / 2; }
    // Numbers in a panel as `pack_columns` writes it.
    std::int64_t panel_numbers() const { return pairs() * panel * 2; }
};

// What is summed: left and right are packed panels of `pairs` pairs of tokens each.
struct TokenProducts {
    const std::uint16_t* left;
    const std::uint16_t* right;
    std::int64_t pairs;
    std::int64_t rows, columns;  // of sums, the widths of left and right
    bool lower;                  // leaves out what lies above the diagonal, roughly
    float* sums;

    // Columns that are computed together, for which right's panels stay in the cache.
    static constexpr std::int64_t columns_at_a_time = 48;
};

struct KernelTable;

// sums += left^T right in float32, sums [left.width, right.width]. right may be nullptr: it is left then, and
// sums above the diagonal are undefined. Every sum has one order, whatever the threads. Throws
// std::bad_alloc.
void add_token_products(const KernelTable& kernels, const TokenColumns& left, const TokenColumns* right,
                        int threads, float* sums);

}  // namespace tightpack
