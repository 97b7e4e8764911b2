// The machine's ceilings, as one line of JSON: what all allowed cores together read from memory, and the
// integer and bfloat16 operations a second that they do in registers (a multiplication and an addition are
// two).
//
//   c++ -O3 -std=c++20 -pthread -march=native benchmarks/machine_peaks.cpp -o machine_peaks &&
//   ./machine_peaks
//
// Each figure is the best of several rounds: a ceiling is what the machine can do, not what it does on
// average.
#if !defined(__x86_64__)
#error "machine_peaks knows the dot products of x86-64 only"
#endif
#include <immintrin.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int kRounds = 7;
constexpr std::size_t kBytesPerThread = std::size_t{256} << 20;  // far beyond any last-level cache's share

// Independent accumulators: enough to hide the latency of the instruction, few enough to stay in registers. A
// loop whose accumulators spill shows half the rate.
constexpr int kAccumulators = 12;
constexpr std::int64_t kIterations = 20'000'000;

#if defined(__AVX512F__)
using Vector = __m512i;
using Floats = __m512;
constexpr int kLanes = 16;
#else
using Vector = __m256i;
using Floats = __m256;
constexpr int kLanes = 8;
#endif

#if defined(__AVX512VNNI__)
constexpr const char* kInt8Kernel = "avx512_vnni";
constexpr int kInt8OpsPerLane = 8;
inline void dot(Vector& sum, Vector a, Vector b) {
    asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
#elif defined(__AVXVNNI__)
constexpr const char* kInt8Kernel = "avx_vnni";
constexpr int kInt8OpsPerLane = 8;
inline void dot(Vector& sum, Vector a, Vector b) {
    asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}
#else
// Without a dot product of bytes: multiply pairs into 16 bits, pairs of those into 32, and add.
constexpr const char* kInt8Kernel = "avx2";
constexpr int kInt8OpsPerLane = 8;
inline void dot(Vector& sum, Vector a, Vector b) {
#if defined(__AVX512BW__)
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)));
#else
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
#endif
    asm volatile("" : "+x"(sum), "+x"(a));
}
#endif

#if defined(__AVX512BF16__)
constexpr const char* kBf16Kernel = "avx512_bf16";
constexpr int kBf16OpsPerLane = 4;
inline void dot(Floats& sum, Vector a, Vector b) {
    asm volatile("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
#else
// No instruction multiplies bfloat16 here: engines widen to float, and the ceiling is that of float.
constexpr const char* kBf16Kernel = "fma_float32";
constexpr int kBf16OpsPerLane = 2;
inline void dot(Floats& sum, Vector a, Vector b) {
    asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
#endif

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<int> allowed_cpus() {
    cpu_set_t set;
    std::vector<int> cpus;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return {0};
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
    return cpus;
}

// Runs work(thread) on every allowed CPU at once, kRounds times, and returns the seconds of the fastest
// round.
template <typename Work>
double fastest_round(const std::vector<int>& cpus, Work work) {
    const int count = static_cast<int>(cpus.size());
    std::barrier gate(count + 1);
    std::vector<std::thread> threads;
    for (int thread = 0; thread < count; ++thread) {
        threads.emplace_back([&, thread] {
            cpu_set_t set;
            CPU_ZERO(&set);
            CPU_SET(cpus[thread], &set);
            sched_setaffinity(0, sizeof set, &set);
            for (int round = 0; round < kRounds; ++round) {
                gate.arrive_and_wait();
                work(thread);
                gate.arrive_and_wait();
            }
        });
    }
    double best = 1e30;
    for (int round = 0; round < kRounds; ++round) {
        gate.arrive_and_wait();
        const auto start = std::chrono::steady_clock::now();
        gate.arrive_and_wait();
        best = std::min(best, seconds_since(start));
    }
    for (auto& thread : threads) thread.join();
    return best;
}

template <typename Accumulator>
void accumulate() {
    Accumulator sums[kAccumulators] = {};
    Vector a{}, b{};
    asm volatile("" : "+x"(a), "+x"(b));
    for (std::int64_t i = 0; i < kIterations; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < kAccumulators; ++j) dot(sums[j], a, b);
    }
    for (auto& sum : sums) asm volatile("" : "+x"(sum));
}

std::uint64_t read_all(const std::uint8_t* data) {
    constexpr int kStreams = 4;  // independent loads under way
    Vector sums[kStreams] = {};
    const auto* vectors = reinterpret_cast<const Vector*>(data);
    const std::size_t count = kBytesPerThread / sizeof(Vector);
    for (std::size_t i = 0; i < count; i += kStreams) {
        for (int j = 0; j < kStreams; ++j) sums[j] ^= vectors[i + j];
    }
    for (int j = 1; j < kStreams; ++j) sums[0] ^= sums[j];
    return static_cast<std::uint64_t>(sums[0][0]);
}

std::uint8_t* large_buffer(std::size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        std::fprintf(stderr, "machine_peaks needs %zu MiB of memory\n", bytes >> 20);
        std::exit(1);
    }
    madvise(memory, bytes, MADV_HUGEPAGE);  // or else misses of the page-table cache are measured too
    return static_cast<std::uint8_t*>(memory);
}

}  // namespace

int main() {
    const auto cpus = allowed_cpus();
    const auto threads = static_cast<double>(cpus.size());
    const double lane_steps = threads * kLanes * kAccumulators * static_cast<double>(kIterations);

    const double int8_s = fastest_round(cpus, [](int) { accumulate<Vector>(); });
    const double bf16_s = fastest_round(cpus, [](int) { accumulate<Floats>(); });

    auto* buffer = large_buffer(cpus.size() * kBytesPerThread);
    std::vector<std::uint64_t> sums(cpus.size() * 16);  // a cache line apart
    fastest_round(cpus, [&](int thread) {
        std::fill_n(buffer + thread * kBytesPerThread, kBytesPerThread,
                    static_cast<std::uint8_t>(thread + 1));
    });
    const double read_s = fastest_round(
        cpus, [&](int thread) { sums[thread * 16] += read_all(buffer + thread * kBytesPerThread); });
    volatile std::uint64_t kept = sums[0];
    (void)kept;

    std::printf(
        "{\"threads\": %zu, \"int8_ops_per_s\": %.4g, \"int8_kernel\": \"%s\", \"bf16_ops_per_s\": %.4g, "
        "\"bf16_kernel\": \"%s\", \"read_bytes_per_s\": %.4g}\n",
        cpus.size(), lane_steps * kInt8OpsPerLane / int8_s, kInt8Kernel,
        lane_steps * kBf16OpsPerLane / bf16_s, kBf16Kernel,
        threads * static_cast<double>(kBytesPerThread) / read_s);
    return 0;
}
