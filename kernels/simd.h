// Vectors of one SIMD register, and 2^x and log2(x) on them.
//
// Written with the vector extension of GCC and Clang, so that one source serves AVX-512, AVX2, NEON and plain C++.
// Intrinsics are used only where AVX-512 has a single instruction. Everything has internal linkage, because this file
// is compiled once for each instruction set and the linker must not share code between them.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

template <class Element, int lanes = VECTOR_BYTES / sizeof(Element)>
struct VectorOf {
  typedef Element type __attribute__((vector_size(lanes * sizeof(Element))));
};
template <class Real>
using Vector = typename VectorOf<Real>::type;
using Floats = Vector<float>;
using Doubles = Vector<double>;
using Words = Vector<uint32_t>;

template <class Real>
constexpr int kLanes = VECTOR_BYTES / sizeof(Real);

template <class To, class From>
INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class V, class Element>
INLINE V load(const Element* from) {
  V vector;
  memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class V, class Element>
INLINE void store(Element* to, V vector) {
  memcpy(to, &vector, sizeof vector);
}

// Stores past the caches, for data that is not read again soon; `to` is aligned to a vector.
template <class V, class Element>
INLINE void stream(Element* to, V vector) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits<__m512i>(vector));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits<__m256i>(vector));
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits<__m128i>(vector));
#else
  store(to, vector);
#endif
}

template <class Real>
INLINE Vector<Real> fill(Real value) {
  return value - Vector<Real>{};
}

template <class Real>
INLINE double sum(Vector<Real> vector) {
  double total = 0;
  for (int lane = 0; lane < kLanes<Real>; ++lane) total += vector[lane];
  return total;
}

// a * b + c, rounded once; computed in double on machines without a fused instruction.
INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return a * b + c;  // both compilers contract this by default
#else
  using Wide = VectorOf<double, kLanes<float>>::type;
  return __builtin_convertvector(__builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide) +
                                     __builtin_convertvector(c, Wide),
                                 Floats);
#endif
}

INLINE Doubles fused(Doubles a, Doubles b, Doubles c) { return a * b + c; }

template <class V, class Real, int terms>
INLINE V polynomial(V x, const Real (&coefficients)[terms]) {
  V y = fill<Real>(coefficients[terms - 1]);
#pragma GCC unroll 16
  for (int i = terms - 2; i >= 0; --i) y = y * x + fill<Real>(coefficients[i]);
  return y;
}

// 2^y: 0 if the result is below the smallest normal number (with AVX-512: the smallest number), at least 2^127 if it is
// larger, NaN for NaN. Relative error: 3e-6 for `fast`, far below the rounding of 16-bit results, else 2e-7. The
// coefficients are minimax.
template <bool fast>
INLINE Floats exp2(Floats y) {
#if defined(__AVX512F__)
  static constexpr float degree4[] = {1.00000259336f, 0.693003834484f, 0.241442756793f, 0.0520114607757f,
                                      0.0135341678483f};  // on [0, 1)
  static constexpr float degree5[] = {0.99999992506f,   0.693153073207f,   0.240153616983f,
                                      0.0558263182317f, 0.00898933987660f, 0.00187757676566f};
  const Floats fraction = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF);
  return _mm512_scalef_ps(fast ? polynomial(fraction, degree4) : polynomial(fraction, degree5), y);  // by floor(y)
#else
  static constexpr float degree5[] = {1.00000007165f,   0.693146967065f,   0.240221197237f,
                                      0.0555071327186f, 0.00967554134312f, 0.00132764726320f};  // on [-1/2, 1/2]
  const Floats magic = fill(0x1.8p23f);  // so large that adding it rounds to an integer in the lowest bits
  const Floats bounded = y > 127.0f ? fill(127.0f) : y;
  const Floats shifted = bounded + magic;
  const Floats fraction = bounded - (shifted - magic);
  const Floats power = bits<Floats>(bits<Words>(polynomial(fraction, degree5)) + (bits<Words>(shifted) << 23));
  return y < -126.0f ? Floats{} : (y == y ? power : y);
#endif
}

// The same for doubles, with a relative error of 4e-16.
template <bool>
INLINE Doubles exp2(Doubles y) {
  static constexpr double degree11[] = {
      0.9999999999999999971, 0.69314718055994533046, 0.24022650695910156204,   0.055504108664819921605,
      0.0096181291075883352, 0.0013333558146789921722, 0.00015403530462514432, 1.5252733489988525649e-5,
      1.3215433089676399e-6, 1.0178198021671930844e-7, 7.0741056135082147963e-9, 4.4352827069572771511e-10};
  using Longs = Vector<uint64_t>;
  const Doubles magic = fill(0x1.8p52);
  const Doubles bounded = y > 1023.0 ? fill(1023.0) : y;
  const Doubles shifted = bounded + magic;
  const Doubles fraction = bounded - (shifted - magic);
  const Doubles power = bits<Doubles>(bits<Longs>(polynomial(fraction, degree11)) + (bits<Longs>(shifted) << 52));
  return y < -1022.0 ? Doubles{} : (y == y ? power : y);
}

// log2(x) for normal x > 0, with an absolute error of 4e-7 (`fast`: 2e-6) if x <= 1. Other x give any number but NaN.
template <bool fast>
INLINE Floats log2(Floats x) {
  // Coefficients of log2(1 + s) / s on [0, 1).
  static constexpr float degree5[] = {1.44255314684f,  -0.718281940252f, 0.458270893102f,
                                      -0.27953829934f, 0.123451624825f,  -0.0264574939256f};
  static constexpr float degree6[] = {1.442667829569f, -0.720585474727f,  0.473553444402f, -0.325902062929f,
                                      0.194294446583f, -0.0795578172363f, 0.0155299410188f};
#if defined(__AVX512F__)
  const Floats exponent = _mm512_getexp_ps(x);
  const Floats mantissa = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
#else
  const Words word = bits<Words>(x);
  const Floats exponent = __builtin_convertvector(bits<Vector<int32_t>>(word >> 23) - 127, Floats);
  const Floats mantissa = bits<Floats>((word & 0x7fffffu) | 0x3f800000u);
#endif
  const Floats s = mantissa - 1.0f;
  return s * (fast ? polynomial(s, degree5) : polynomial(s, degree6)) + exponent;
}

template <bool>
INLINE Doubles log2(Doubles x) {
  Doubles y;
  for (int lane = 0; lane < kLanes<double>; ++lane) y[lane] = x[lane] > 0 ? __builtin_log2(x[lane]) : 0;
  return y;
}

}  // namespace
