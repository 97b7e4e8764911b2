// Matrices as arguments of the module's functions, and how they are refused.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>

namespace tightpack {

namespace nb = nanobind;

template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using AnyMatrix = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu, nb::ro>;

[[noreturn]] inline void refuse(const std::string& message) {
    throw nb::value_error(message.c_str());
}

inline std::int64_t rows_of(const auto& matrix) {
    return static_cast<std::int64_t>(matrix.shape(0));
}

inline std::int64_t columns_of(const auto& matrix) {
    return static_cast<std::int64_t>(matrix.shape(1));
}

inline void check_threads(int threads) {
    if (threads < 1 || threads > 1024) refuse("threads must be 1 .. 1024, not " + std::to_string(threads));
}

inline void check_shape(const auto& matrix, std::int64_t rows, std::int64_t columns, const char* name) {
    if (rows_of(matrix) == rows && columns_of(matrix) == columns) return;
    refuse(std::string(name) + " must be [" + std::to_string(rows) + ", " + std::to_string(columns) + "], not [" +
           std::to_string(rows_of(matrix)) + ", " + std::to_string(columns_of(matrix)) + "]");
}

}  // namespace tightpack
