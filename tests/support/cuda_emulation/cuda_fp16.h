// float16, rounded to nearest, ties to even.
#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;

  __half() = default;
  explicit __half(float value) {
    const float magnitude = fabsf(value);
    if (value != value) {
      bits = 0x7fff;
    } else if (magnitude >= 65520) {
      bits = 0x7c00;
    } else {
      // A normal number has 10 bits after the leading one, a subnormal one is a multiple of 2^-24. nearbyint rounds ties
      // to even, and a carry raises the exponent.
      const int exponent = magnitude < 0x1p-14f ? -14 : ilogbf(magnitude);
      const int units = static_cast<int>(nearbyintf(ldexpf(magnitude, 10 - exponent)));
      bits = static_cast<uint16_t>(magnitude < 0x1p-14f ? units : units - 1024 + ((exponent + 15) << 10));
    }
    if (signbit(value)) bits |= 0x8000;
  }
  explicit operator float() const {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    float magnitude = exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
    if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
    return bits & 0x8000 ? -magnitude : magnitude;
  }
};

struct __half2 {
  __half x, y;
};

inline __half2 __hmax2(__half2 a, __half2 b) {
  return {__half(max(float(a.x), float(b.x))), __half(max(float(a.y), float(b.y)))};
}
