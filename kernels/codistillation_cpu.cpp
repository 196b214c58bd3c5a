// The loss on a CPU: threads share the rows, and each row is computed with the widest instructions of the machine.
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "codistillation.h"
#include "cpu_row.h"

namespace {

// A larger gradient has left the caches before it is read.
constexpr int64_t kStreamingBytes = 16 << 20;
// Least number of columns that a thread takes at a time: scheduling fewer costs more than it gains.
constexpr int64_t kColumnsPerTurn = 16384;

struct InstructionSet {
  const char* name;
  bool supported;
  RowFunction row_function;
};

// Returns the first supported set if `name` is null, else the supported set of this name, or null.
const InstructionSet* find(const char* name) {
#if defined(__x86_64__)
  static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512bw");
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  static const InstructionSet best_first[] = {
#if defined(__x86_64__)
      {"avx512_bf16", avx512 && __builtin_cpu_supports("avx512bf16"), codistillation_row_avx512_bf16},
      {"avx512", avx512, codistillation_row_avx512},
      {"avx2", avx2, codistillation_row_avx2},
#endif
      {"baseline", true, codistillation_row_baseline},
  };
  for (const InstructionSet& set : best_first)
    if (set.supported && (!name || !strcmp(name, set.name))) return &set;
  return nullptr;
}

int64_t gradient_bytes(const HpcdistillRows& call) {
  const int64_t bytes[] = {4, 2, 2, 8};  // by dtype
  return call.rows * call.classes * bytes[call.dtype];
}

}  // namespace

extern "C" const char* hpcdistill_cpu_instructions(void) { return find(nullptr)->name; }

extern "C" int hpcdistill_codistillation_cpu(const HpcdistillRows* call, int threads, const char* instructions) {
  const InstructionSet* set = find(instructions);
  if (!set) return HPCDISTILL_NO_SUCH_INSTRUCTIONS;
  const bool streaming = call->gradient != call->logits && gradient_bytes(*call) > kStreamingBytes;
  const int64_t turn = kColumnsPerTurn / call->classes + 1;
  int status = 0;
#pragma omp parallel num_threads(threads)
  {
    void* scratch = aligned_alloc(64, scratch_bytes(*call));
    if (!scratch) {
#pragma omp atomic write
      status = HPCDISTILL_OUT_OF_MEMORY;
    }
#pragma omp for schedule(dynamic, turn)
    for (int64_t row = 0; row < call->rows; ++row)
      if (scratch) set->row_function(*call, row, scratch, streaming);
    free(scratch);
#if defined(__x86_64__)
    _mm_sfence();  // makes streaming stores visible to other threads
#endif
  }
  return status;
}
