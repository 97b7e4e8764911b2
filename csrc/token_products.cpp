#include "token_products.h"

#include <cstddef>
#include <memory>
#include <new>

#include "kernel_table.h"
#include "parallel_for.h"

namespace tightpack {
namespace {

struct Released {
    void operator()(std::uint16_t* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

// Packed panels of all columns. Not an AlignedBuffer: its fresh pages would cost as much as the product.
class PackedColumns {
  public:
    PackedColumns(const KernelTable& kernels, const TokenColumns& from, int threads) {
        const auto bytes = static_cast<std::size_t>(from.panels() * from.panel_numbers()) * 2;
        memory_.reset(static_cast<std::uint16_t*>(::operator new[](bytes, std::align_val_t{64})));
        parallel_for(from.panels(), (from.panels() + threads - 1) / threads, threads,
                     [&](std::int64_t first, std::int64_t last) {
                         kernels.token_products.pack(from, first, last, memory_.get());
                     });
    }
    const std::uint16_t* get() const { return memory_.get(); }

  private:
    std::unique_ptr<std::uint16_t[], Released> memory_;
};

}  // namespace

void add_token_products(const KernelTable& kernels, const TokenColumns& left, const TokenColumns* right,
                        int threads, float* sums) {
    if (left.tokens == 0) return;
    const PackedColumns rows(kernels, left, threads);
    TokenProducts work{rows.get(), rows.get(), left.pairs(), left.width, left.width, right == nullptr, sums};
    std::unique_ptr<PackedColumns> columns;
    if (right != nullptr) {
        columns = std::make_unique<PackedColumns>(kernels, *right, threads);
        work.right = columns->get();
        work.columns = right->width;
    }
    constexpr std::int64_t step = TokenProducts::columns_at_a_time;
    // Stretches shorten towards the end of a triangle: threads take one at a time.
    parallel_for((work.columns + step - 1) / step, 1, threads, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t stretch = first; stretch < last; ++stretch) {
            kernels.token_products.add(work, stretch * step);
        }
    });
}

}  // namespace tightpack
