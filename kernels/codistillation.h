// C interface of the compiled kernels: one call of the fused loss. Mirrors `Rows` in rows.py, which explains each
// field; c_interface.py fills it.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum HpcdistillDtype { HPCDISTILL_F32 = 0, HPCDISTILL_BF16 = 1, HPCDISTILL_F16 = 2, HPCDISTILL_F64 = 3 };

// "Real" is double for HPCDISTILL_F64 and float otherwise. Strides count elements from one row to the next.
typedef struct {
  int64_t rows, classes;
  int32_t dtype, teachers;
  const void* logits;
  int64_t logits_stride;
  const void* const* teacher_logits;  // `teachers` pointers, in host memory
  const int64_t* teacher_strides;     // likewise
  const double* mixture;              // likewise
  const void* teacher_lse;            // Real [teachers, rows], or null
  const int64_t* target;
  const void* class_weight;  // Real [all_classes], or null
  const void* scales;        // Real [3]
  double temperature, label_smoothing;
  int64_t ignore_index;
  void* losses;    // Real [rows]
  void* parts;     // Real [3, rows]
  void* gradient;  // null if not wanted
  int64_t gradient_stride;
  int64_t first_class, all_classes;  // 0 and `classes`, except in a shard
  double* shard_lse;                 // [2 + teachers, rows]; null if the columns are no shard
  int32_t is_merged;                 // whether shard_lse is over all classes
} HpcdistillRows;

enum HpcdistillCpuStatus { HPCDISTILL_OUT_OF_MEMORY = 1, HPCDISTILL_NO_SUCH_INSTRUCTIONS = 2 };

// Runs on `threads` threads of this process, with the named instruction set, or the machine's best for null. Labels
// must be in range. Returns 0 or an HpcdistillCpuStatus.
int hpcdistill_codistillation_cpu(const HpcdistillRows* rows, int threads, const char* instructions);
// Returns the machine's best: "avx512_bf16", "avx512", "avx2" or "baseline".
const char* hpcdistill_cpu_instructions(void);

// Enqueues the kernel on a CUDA stream of the device with the number `device`, without waiting, and leaves that device
// current. Returns 0 or a cudaError_t. The library has a CUDA runtime of its own, which does not know the device that
// its caller's runtime has made current.
int hpcdistill_codistillation_cuda(const HpcdistillRows* rows, int device, void* stream);
const char* hpcdistill_cuda_error_string(int error);

#ifdef __cplusplus
}
#endif
