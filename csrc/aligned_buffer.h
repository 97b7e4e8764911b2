#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>

namespace tightpack {

// Zeroed memory at an address that is a multiple of 64, on huge pages where it is large and the system has some
// to give. Pages are not touched before their first use, so that a large pool costs what of it is used. Moved,
// not copied. Throws std::bad_alloc.
class AlignedBuffer {
  public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(std::size_t bytes);
    AlignedBuffer(AlignedBuffer&&) = default;
    AlignedBuffer& operator=(AlignedBuffer&&) = default;

    template <class T = std::byte>
    T* as() const {
        return reinterpret_cast<T*>(memory_.get());
    }
    std::size_t size() const { return size_; }

  private:
    friend class Arena;
    AlignedBuffer(std::shared_ptr<std::byte> memory, std::size_t size)
        : memory_(std::move(memory)), size_(size) {}

    std::shared_ptr<std::byte> memory_;
    std::size_t size_ = 0;
};

// Many buffers in few large pieces of memory, one after the other: a linear of a small model is less than a huge
// page, and with pages of 4 KiB its weights stream at two thirds of the speed. A piece is freed with the last
// of its buffers. Threads may take buffers at the same time.
class Arena {
  public:
    AlignedBuffer take(std::size_t bytes);

  private:
    std::mutex mutex_;
    AlignedBuffer piece_;
    std::size_t used_ = 0;
};

}  // namespace tightpack
