// Vectors of any width that the compiler makes of what the processor has; exp and log1p of them; the half precisions.
//
// exp and log1p of float, without a branch or a table, are within 2 ulp where they are used; the polynomials are those
// of Moshier's Cephes library (expf, logf).

#pragma once

#include <stdint.h>
#include <string.h>

namespace topkloss {
namespace {

// Bytes of a register.
#if defined(__AVX512F__)
#define TOPKLOSS_VECTOR 64
#elif defined(__AVX2__)
#define TOPKLOSS_VECTOR 32
#else
#define TOPKLOSS_VECTOR 16
#endif

template <typename Real>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float Reals __attribute__((vector_size(TOPKLOSS_VECTOR)));
  typedef int32_t Int;
  typedef int32_t Ints __attribute__((vector_size(TOPKLOSS_VECTOR)));
  typedef uint32_t Words __attribute__((vector_size(TOPKLOSS_VECTOR)));
};

template <>
struct VectorOf<double> {
  typedef double Reals __attribute__((vector_size(TOPKLOSS_VECTOR)));
  typedef int64_t Int;
  typedef int64_t Ints __attribute__((vector_size(TOPKLOSS_VECTOR)));
  typedef uint64_t Words __attribute__((vector_size(TOPKLOSS_VECTOR)));
};

template <typename Real>
using Reals = typename VectorOf<Real>::Reals;
template <typename Real>
using Ints = typename VectorOf<Real>::Ints;
template <typename Real>
using Words = typename VectorOf<Real>::Words;  // these wrap around
template <typename Real>
using Int = typename VectorOf<Real>::Int;
template <typename Real>
constexpr int LANES = TOPKLOSS_VECTOR / sizeof(Real);

template <typename Vector, typename Number>
inline Vector load_vector(const Number *from) {
  Vector vector;
  memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename Vector, typename Number>
inline void store_vector(Number *to, Vector vector) {
  memcpy(to, &vector, sizeof vector);
}

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// exp(x) for x <= 0; 0 below -87, where the answer would be denormal; NaN for NaN.
inline Reals<float> exp_of(Reals<float> x) {
  // 1.5 * 2^23 + 127: adding it rounds to an integer, which its low bits then hold as an exponent
  const float magic = 12583039.0f;
  const Reals<float> shifted = x * 1.44269504f + magic;
  const Reals<float> n = shifted - magic;
  const Reals<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Reals<float> p = r * 1.3814539880e-3f + 8.3687451271e-3f;
  p = p * r + 4.1668390790e-2f;
  p = p * r + 1.6666520399e-1f;
  p = p * r + 4.9999993432e-1f;
  p = p * (r * r) + (r + 1.0f);
  const Reals<float> y = p * bits_as<Reals<float>>(bits_as<Words<float>>(shifted) << 23);
  return x < -87.0f ? Reals<float>{} : y;
}

// exp(x) for x <= 0; 0 below -708; NaN for NaN. Taylor's series to the 13th power of |r| <= log(2) / 2.
inline Reals<double> exp_of(Reals<double> x) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const Reals<double> shifted = x * 1.4426950408889634 + magic;
  const Reals<double> n = shifted - magic;
  const Reals<double> r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  Reals<double> p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + (r + 1.0);
  const Words<double> exponent = bits_as<Words<double>>(shifted) - (uint64_t{0x4338000000000000} - 1023u);
  const Reals<double> y = p * bits_as<Reals<double>>(exponent << 52);
  return x < -708.0 ? Reals<double>{} : y;
}

// log(w) for a normal number w > 0, to which so much, relatively, is to be added; NaN for NaN.
inline Reals<float> log_of(Reals<float> w, Reals<float> lost = Reals<float>{}) {
  const Ints<float> bits = bits_as<Ints<float>>(w);
  const Ints<float> exponent = (bits - 0x3f3504f3) >> 23;  // so that the mantissa is in [sqrt(1/2), sqrt(2))
  const Reals<float> z = bits_as<Reals<float>>(bits - (exponent << 23)) - 1.0f;
  const Reals<float> e = __builtin_convertvector(exponent, Reals<float>);
  Reals<float> p = z * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * z + 1.1676998740e-1f;
  p = p * z - 1.2420140846e-1f;
  p = p * z + 1.4249322787e-1f;
  p = p * z - 1.6668057665e-1f;
  p = p * z + 2.0000714765e-1f;
  p = p * z - 2.4999993993e-1f;
  p = p * z + 3.3333331174e-1f;
  const Reals<float> zz = z * z;
  const Reals<float> y = p * z * zz - e * 2.12194440e-4f - zz * 0.5f;
  const Reals<float> sum = (z + (y + lost)) + e * 0.693359375f;
  return w == w ? sum : w;
}

// log(1 + u) for u >= 0, relatively exact however small u is; NaN for NaN.
inline Reals<float> log1p_of(Reals<float> u) {
  const Reals<float> w = u + 1.0f;
  return log_of(w, (u - (w - 1.0f)) / w);  // and what the sum rounded away
}

inline Reals<double> log1p_of(Reals<double> u) {
  Reals<double> y;
  for (int i = 0; i < LANES<double>; ++i) y[i] = __builtin_log1p(u[i]);
  return y;
}

// Half precision as it lies in memory. The exact numbers, both ways; to the nearest, ties to even.
struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

inline float number(float x) { return x; }
inline double number(double x) { return x; }
inline float number(bfloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float number(float16 x) {
  const uint32_t half = x.bits, magnitude = (half & 0x7fffu) << 13;
  const float scaled = bits_as<float>(magnitude) * 5.192296858534828e33f;  // 2^112: the difference of the biases
  const uint32_t special = magnitude | 0x7f800000u;                       // of inf and NaN
  const uint32_t bits = magnitude >= 0x0f800000u ? special : bits_as<uint32_t>(scaled);
  return bits_as<float>(bits | (half & 0x8000u) << 16);
}

inline void store(float &to, float x) { to = x; }
inline void store(double &to, double x) { to = x; }

inline void store(bfloat16 &to, float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
}

inline void store(float16 &to, float x) {
  // Adding a number that is 2^13 ulp of half precision larger rounds there; the least one covers the denormal halves.
  const uint32_t sign = bits_as<uint32_t>(x) & 0x80000000u, magnitude = bits_as<uint32_t>(x) ^ sign;
  const float size = bits_as<float>(magnitude);
  const uint32_t exponent = magnitude & 0x7f800000u;
  const uint32_t least = 0x38800000u;  // 2^-14, the least normal half
  const float unit = bits_as<float>((exponent > least ? exponent : least) + (13u << 23));
  const float rounded = (size + unit) - unit;
  const uint32_t bits = bits_as<uint32_t>(rounded);
  const uint32_t normal = (bits - (112u << 23)) >> 13;
  const auto denormal = static_cast<uint32_t>(static_cast<int32_t>(rounded * 16777216.0f));  // in units of 2^-24
  const uint32_t half = rounded >= 65520.0f ? 0x7c00u : (bits < least ? denormal : normal);
  to.bits = static_cast<uint16_t>((x == x ? half : 0x7e00u) | sign >> 16);
}

// What is computed in for each type of logits.
template <typename T>
struct ComputingOf {
  using type = float;
};

template <>
struct ComputingOf<double> {
  using type = double;
};

template <typename T>
using Computing = typename ComputingOf<T>::type;

}  // namespace
}  // namespace topkloss
