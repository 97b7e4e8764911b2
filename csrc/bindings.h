// What each *_bindings.cpp adds to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace tightpack {

void bind_calibration(nanobind::module_& m);
void bind_linears(nanobind::module_& m);
void bind_program(nanobind::module_& m);
void bind_sampler(nanobind::module_& m);

}  // namespace tightpack
