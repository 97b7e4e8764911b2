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

#if defined(TIGHTPACK_MAP_MEMORY)

AlignedBuffer::AlignedBuffer(std::size_t bytes) {
    if (bytes > 0) memory_ = {map_zeroed(bytes), Unmap{bytes}};
}

void AlignedBuffer::Unmap::operator()(std::byte* memory) const {
    munmap(memory, bytes);
}

#else

AlignedBuffer::AlignedBuffer(std::size_t bytes) {
    if (bytes == 0) return;
    constexpr std::size_t alignment = 64;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* raw = std::aligned_alloc(alignment, rounded);
    if (raw == nullptr) throw std::bad_alloc();
    std::memset(raw, 0, rounded);
    memory_ = {static_cast<std::byte*>(raw), Unmap{bytes}};
}

void AlignedBuffer::Unmap::operator()(std::byte* memory) const {
    std::free(memory);
}

#endif

}  // namespace tightpack
