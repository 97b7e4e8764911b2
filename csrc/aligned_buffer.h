#pragma once

#include <cstddef>
#include <memory>

namespace tightpack {

// Zeroed memory at an address that is a multiple of 64, on huge pages where the system has some to give. Pages
// are not touched before their first use, so that a large pool costs what of it is used. Throws
// std::bad_alloc.
class AlignedBuffer {
public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(std::size_t bytes);

    template <class T = std::byte>
    T* as() const {
        return reinterpret_cast<T*>(memory_.get());
    }
    std::size_t size() const { return memory_ ? memory_.get_deleter().bytes : 0; }

private:
    struct Unmap {
        std::size_t bytes;
        void operator()(std::byte* memory) const;
    };
    std::unique_ptr<std::byte, Unmap> memory_;
};

}  // namespace tightpack
