// One row of the loss on a CPU, compiled once for each instruction set (see cpu_row.cpp).
#pragma once

#include <stdint.h>

#include "codistillation.h"

// Computes row `row` of `call`. `scratch` is aligned to a cache line and has `scratch_bytes(call)` bytes. `streaming`
// stores the gradient past the caches.
using RowFunction = void (*)(const HpcdistillRows& call, int64_t row, void* scratch, bool streaming);

void codistillation_row_avx512_bf16(const HpcdistillRows& call, int64_t row, void* scratch, bool streaming);
void codistillation_row_avx512(const HpcdistillRows& call, int64_t row, void* scratch, bool streaming);
void codistillation_row_avx2(const HpcdistillRows& call, int64_t row, void* scratch, bool streaming);
void codistillation_row_baseline(const HpcdistillRows& call, int64_t row, void* scratch, bool streaming);

// Distance in Reals from the exponentials of one tensor's row to those of the next. It has room for an incomplete group
// of columns, and is never a multiple of 4096 bytes, at which stores and loads would conflict.
inline int64_t scratch_stride(int64_t classes) { return (classes + 127) / 64 * 64 + 48; }

// Exponentials of the student, the teachers and the tempered student, and one number for each teacher.
inline int64_t scratch_bytes(const HpcdistillRows& call) {
  const int64_t real_bytes = call.dtype == HPCDISTILL_F64 ? 8 : 4;
  const int64_t reals = (call.teachers + 2) * scratch_stride(call.classes) + call.teachers;
  return (reals * real_bytes + 63) / 64 * 64;
}
