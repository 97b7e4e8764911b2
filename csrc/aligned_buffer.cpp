#include "aligned_buffer.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// Under the address sanitizer memory comes from the heap, where it sees a byte read or written too many.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define TIGHTPACK_MAP_MEMORY
#include <sys/mman.h>
#endif

namespace tightpack {
namespace {

#if defined(TIGHTPACK_MAP_MEMORY)

constexpr std::size_t huge_page = std::size_t{2} << 20;

// A mapping starts anywhere, and only whole huge pages of it become ones; so a large one is cut to start at one.
std::byte* map_zeroed(std::size_t bytes) {
    const std::size_t slack = bytes >= huge_page ? huge_page : 0;
    void* raw = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    auto* start = static_cast<std::byte*>(raw);
    if (slack == 0) return start;
    const std::size_t lead = (huge_page - reinterpret_cast<std::uintptr_t>(start) % huge_page) % huge_page;
    if (lead > 0) munmap(start, lead);
    if (lead < slack) {
        // munmap wants whole pages: the end is rounded up to one.
        const std::size_t page = 4096, end = (bytes + page - 1) / page * page;
        munmap(start + lead + end, (bytes + slack + page - 1) / page * page - lead - end);
    }
    madvise(start + lead, bytes, MADV_HUGEPAGE);  // advice: without it all works, slower
    return start + lead;
}

#endif

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
#if defined(TIGHTPACK_MAP_MEMORY)
    memory_ = {map_zeroed(bytes), [bytes](std::byte* memory) { munmap(memory, bytes); }};
#else
    constexpr std::size_t alignment = 64;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* raw = std::aligned_alloc(alignment, rounded);
    if (raw == nullptr) throw std::bad_alloc();
    std::memset(raw, 0, rounded);
    memory_ = {static_cast<std::byte*>(raw), [](std::byte* memory) { std::free(memory); }};
#endif
}

AlignedBuffer Arena::take(std::size_t bytes) {
#if !defined(TIGHTPACK_MAP_MEMORY)
    return AlignedBuffer(bytes);
#else
    // Sixteen huge pages. What is larger gets pieces of its own.
    constexpr std::size_t piece_bytes = std::size_t{32} << 20;
    const std::size_t rounded = (bytes + 63) / 64 * 64;
    if (rounded > piece_bytes / 2) return AlignedBuffer(bytes);
    const std::lock_guard locked(mutex_);
    if (piece_.size() - used_ < rounded) {
        piece_ = AlignedBuffer(piece_bytes);
        used_ = 0;
    }
    std::byte* start = piece_.as() + used_;
    used_ += rounded;
    return {std::shared_ptr<std::byte>(piece_.memory_, start), bytes};
#endif
}

}  // namespace tightpack
