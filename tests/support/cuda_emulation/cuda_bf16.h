// bfloat16, rounded to nearest, ties to even.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    bits = value == value ? (word + 0x7fff + ((word >> 16) & 1)) >> 16 : 0x7fff;
  }
  explicit operator float() const { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
};

struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {__nv_bfloat16(max(float(a.x), float(b.x))), __nv_bfloat16(max(float(a.y), float(b.y)))};
}
