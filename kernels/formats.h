// Formats of logits in memory. Two registers of columns are loaded or stored at a time.
#pragma once

#include "simd.h"

namespace {

template <class RealType>
struct Pair {
  Vector<RealType> a, b;
};

// float and double: a holds the first columns, b the next.
template <class RealType>
struct Full {
  using Real = RealType;
  using Element = RealType;
  static constexpr int columns = 2 * kLanes<Real>;
  static constexpr bool fast = false;
  static constexpr Element minus_infinity = -__builtin_inff();

  static INLINE Pair<Real> load_pair(const Element* from) {
    return {load<Vector<Real>>(from), load<Vector<Real>>(from + kLanes<Real>)};
  }
  static INLINE void store_pair(Element* to, Pair<Real> pair, bool streaming) {
    if (streaming) {
      stream(to, pair.a);
      stream(to + kLanes<Real>, pair.b);
    } else {
      store(to, pair.a);
      store(to + kLanes<Real>, pair.b);
    }
  }
  static INLINE Pair<Real> in_order(const Real* from) { return load_pair(from); }
};

// 16-bit floats: a register of words holds the even columns in its low halves, which become a, and the odd columns in
// its high halves, which become b. No data moves between lanes.
template <class Code>
struct Half {
  using Real = float;
  using Element = uint16_t;
  static constexpr int columns = 2 * kLanes<float>;
  static constexpr bool fast = true;
  static constexpr Element minus_infinity = Code::minus_infinity;

  static INLINE Pair<float> load_pair(const Element* from) {
    const Words words = load<Words>(from);
    return {Code::widen(words << 16), Code::widen(words & 0xffff0000u)};
  }
  static INLINE void store_pair(Element* to, Pair<float> pair, bool streaming) {
    const Words words = Code::pack(pair);
    if (streaming) {
      stream(to, words);
    } else {
      store(to, words);
    }
  }
  static INLINE Pair<float> in_order(const float* from) {
    Pair<float> pair;
    for (int lane = 0; lane < kLanes<float>; ++lane) {
      pair.a[lane] = from[2 * lane];
      pair.b[lane] = from[2 * lane + 1];
    }
    return pair;
  }
};

// The codes widen the 16 bits in the high half of a word, and round to nearest, ties to even.
struct Bfloat16Code {
  static constexpr uint16_t minus_infinity = 0xff80;

  static INLINE Floats widen(Words high) { return bits<Floats>(high); }

  static INLINE Words pack(Pair<float> pair) {
#if defined(__AVX512BF16__)
    alignas(64) static constexpr uint16_t zipped[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i a_then_b = bits<__m512i>(_mm512_cvtne2ps_pbh(pair.b, pair.a));
    return bits<Words>(_mm512_permutexvar_epi16(_mm512_load_si512(zipped), a_then_b));
#else
    return (rounded(pair.a) >> 16) | (rounded(pair.b) & 0xffff0000u);
#endif
  }

  static INLINE Words rounded(Floats reals) {  // the low half of the result is not used
    const Words word = bits<Words>(reals);
    return word + 0x7fffu + ((word >> 16) & 1u);
  }
};

struct Float16Code {
  static constexpr uint16_t minus_infinity = 0xfc00;

  static INLINE Floats widen(Words high) {
    // The exponent bias is 15 in float16 and 127 in float32: read as a float32, the number is 2^112 too small.
    const Floats magnitude = bits<Floats>((high & 0x7fff0000u) >> 3) * 0x1p112f;
    const Words word = bits<Words>(magnitude) | (high & 0x80000000u);
    return bits<Floats>(magnitude < 0x1p16f ? word : word | 0x7f800000u);  // an exponent of 31: infinity or NaN
  }

  static INLINE Words pack(Pair<float> pair) { return narrow(pair.a) | (narrow(pair.b) << 16); }

  static INLINE Words narrow(Floats reals) {
    const Words word = bits<Words>(reals);
    const Floats magnitude = bits<Floats>(word & 0x7fffffffu);
    const Words normal = (bits<Words>(magnitude) + 0xfffu + ((word >> 13) & 1u) - (112u << 23)) >> 13;
    const Words subnormal = bits<Words>(magnitude + 0.5f) - 0x3f000000u;  // in units of 2^-24
    Words half = magnitude < 0x1p-14f ? subnormal : normal;
    half = magnitude < 65520.0f ? half : fill<uint32_t>(0x7c00u);
    half = magnitude == magnitude ? half : fill<uint32_t>(0x7e00u);
    return half | ((word & 0x80000000u) >> 16);
  }
};

using Bfloat16 = Half<Bfloat16Code>;
using Float16 = Half<Float16Code>;

}  // namespace
