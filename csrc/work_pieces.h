// In what pieces the operations of a step hand out the work of many rows.
#pragma once

#include <cstdint>

namespace tightpack {

// Rounded rows of this many tokens, and what becomes of them, stay in a core's cache while weights pass.
inline constexpr std::int64_t rows_at_a_time = 256;
// So many that a thread which is held up leaves most of its share to the others.
inline constexpr std::int64_t pieces_a_thread = 8;

}  // namespace tightpack
