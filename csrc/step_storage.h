// The memory of what a step computes on the way, shared by values that are never alive together.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "aligned_buffer.h"
#include "rows.h"

namespace tightpack {

// A matrix with a row a token. Rows of float32 and bfloat16 lie one after the other without gaps.
struct ValueShape {
    enum class Kind { fp32, bf16, rows };
    Kind kind = Kind::fp32;
    std::int64_t width = 0;
    RowFormat format = {};  // of rows

    bool operator==(const ValueShape&) const = default;
};

// As in "float32 [960]" or "rows of int8 [576]".
std::string describe(const ValueShape& shape);

// While operations are recorded, values are added and their uses noted; then they are laid out, after which
// memory for as many rows as a step has is there at `reserve`.
class StepStorage {
  public:
    explicit StepStorage(int threads) : threads_(threads) {}

    // Returns the value's number, counted from 0. Throws std::invalid_argument unless the width is positive.
    int add(const ValueShape& shape);
    const ValueShape& shape(int value) const { return values_[index(value)].shape; }
    // `operation` makes or reads the value.
    void use(int value, int operation);
    // No thread reads what another made of the value, while they take rows a stretch at a time: then each has a
    // place of its own for it, which stays in its cache from stretch to stretch.
    void keep_to_threads(int value) { values_[index(value)].of_threads = true; }
    bool of_threads(int value) const { return values_[index(value)].of_threads; }

    // Gives every value a slot: those of one kind and shape whose uses do not overlap share one. May be called
    // again after more was added.
    void lay_out();
    int slot(int value) const { return values_[index(value)].slot; }
    int num_slots() const { return static_cast<int>(slots_.size()); }

    // What was there is lost where memory grows. rows_of_threads: of values that are kept to threads.
    void reserve(std::int64_t rows, std::int64_t rows_of_threads);

    float* fp32(int value) const { return slots_[index(slot(value))].memory.as<float>(); }
    std::uint16_t* bf16(int value) const { return slots_[index(slot(value))].memory.as<std::uint16_t>(); }
    const Rows& rows(int value) const { return slots_[index(slot(value))].rows; }
    // A row of the thread's own, where every thread makes the step's only row for itself.
    const Rows& own_row(int value, int thread) const {
        return slots_[index(slot(value))].own[index(thread)].rows;
    }

  private:
    struct Value {
        ValueShape shape;
        int first_use = -1;
        int last_use = -1;
        int slot = -1;
        bool of_threads = false;
    };
    struct OwnRow {
        RowBuffer buffer;
        Rows rows;
    };
    struct Slot {
        ValueShape shape;
        bool of_threads = false;
        int last_use = -1;
        std::int64_t reserved_rows = 0;
        AlignedBuffer memory = {};
        RowBuffer buffer = {};
        Rows rows = {};
        std::vector<OwnRow> own = {};
    };
    static std::size_t index(int number) { return static_cast<std::size_t>(number); }

    const int threads_;
    std::vector<Value> values_;
    std::vector<Slot> slots_;
};

}  // namespace tightpack
