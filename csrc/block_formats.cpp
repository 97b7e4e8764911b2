#include "block_formats.h"

#include <stdexcept>
#include <string>

namespace tightpack {

BlockFormat block_format(std::string_view precision) {
    std::string known;
    for (std::size_t i = 0; i < block_shapes.size(); ++i) {
        if (block_shapes[i].precision == precision) return static_cast<BlockFormat>(i);
        known.append(i == 0 ? "" : ", ").append(block_shapes[i].precision);
    }
    throw std::invalid_argument("precision \"" + std::string(precision) + "\" is not one of " + known);
}

}  // namespace tightpack
