#include "step_storage.h"

#include <algorithm>
#include <stdexcept>

namespace tightpack {

std::string describe(const ValueShape& shape) {
    const std::string width = " [" + std::to_string(shape.width) + "]";
    switch (shape.kind) {
        case ValueShape::Kind::fp32:
            return "float32" + width;
        case ValueShape::Kind::bf16:
            return "bfloat16" + width;
        default:
            break;
    }
    const bool integers = shape.format.codes == RowFormat::Codes::int8;
    return std::string("rows of ") + (integers ? "int8" : shape.format.fp8 ? "fp8" : "bf16") + width;
}

int StepStorage::add(const ValueShape& shape) {
    if (shape.width < 1) throw std::invalid_argument("a value is at least 1 wide, got " + describe(shape));
    values_.push_back({.shape = shape});
    return static_cast<int>(values_.size()) - 1;
}

void StepStorage::use(int value, int operation) {
    Value& used = values_[index(value)];
    if (used.first_use < 0) used.first_use = operation;
    used.last_use = std::max(used.last_use, operation);
}

void StepStorage::lay_out() {
    slots_.clear();
    std::vector<Value*> by_first_use;
    for (Value& value : values_) {
        if (value.first_use >= 0) by_first_use.push_back(&value);
    }
    std::ranges::stable_sort(by_first_use, {}, &Value::first_use);
    for (Value* value : by_first_use) {
        const auto free = std::ranges::find_if(slots_, [&](const Slot& slot) {
            return slot.shape == value->shape && slot.of_threads == value->of_threads &&
                   slot.last_use < value->first_use;
        });
        value->slot = static_cast<int>(free - slots_.begin());
        if (free == slots_.end()) slots_.push_back({.shape = value->shape, .of_threads = value->of_threads});
        slots_[index(value->slot)].last_use = value->last_use;
    }
    for (Slot& slot : slots_) {
        if (slot.shape.kind != ValueShape::Kind::rows) continue;
        slot.own.resize(index(threads_));
        for (OwnRow& own : slot.own) own.rows = own.buffer.resize(slot.shape.format, 1);
    }
}

void StepStorage::reserve(std::int64_t rows, std::int64_t rows_of_threads) {
    for (Slot& slot : slots_) {
        const std::int64_t needed = slot.of_threads ? rows_of_threads : rows;
        if (needed <= slot.reserved_rows) continue;
        // A pool that grows with every longer prompt would be made anew for each of them.
        slot.reserved_rows = std::max(needed, slot.reserved_rows + slot.reserved_rows / 2);
        if (slot.shape.kind == ValueShape::Kind::rows) {
            slot.rows = slot.buffer.resize(slot.shape.format, slot.reserved_rows);
            continue;
        }
        const std::size_t bytes = slot.shape.kind == ValueShape::Kind::fp32 ? 4 : 2;
        slot.memory = AlignedBuffer(static_cast<std::size_t>(slot.reserved_rows * slot.shape.width) * bytes);
    }
}

}  // namespace tightpack
