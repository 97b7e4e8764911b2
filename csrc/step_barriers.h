// Where the threads of a step have to wait for each other.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "step_operations.h"

namespace tightpack {

// For each operation, whether a barrier goes before it: whether since the last one something was written that
// it touches, or touched that it writes. Memory that several values share counts as one. single_row: of a
// step with one row, whose rounded rows every thread makes for itself.
std::vector<std::uint8_t> barriers(const std::vector<std::unique_ptr<Operation>>& operations,
                                   const StepStorage& storage, bool single_row);

}  // namespace tightpack
