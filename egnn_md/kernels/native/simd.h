// Vectors, activations and small dense products that stay in registers and the first two caches.
//
// A row is `width` numbers of type T, a multiple of 16 (the caller pads with zeros); blocks have ROWS rows, a multiple
// of MICRO_ROWS. GCC's vector extension lowers the types below to whatever the processor has.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace egnn {

#ifdef __AVX512F__
constexpr int VECTOR_BYTES = 64;
constexpr int TILE = 4;  // vectors a row of a register tile: 6 x 4 sums and 4 weights fill 32 registers
#else
constexpr int VECTOR_BYTES = 32;
constexpr int TILE = 2;
#endif
constexpr int MICRO_ROWS = 6;
constexpr int ROWS = 48;  // edges of a block

template <typename T> struct Simd;
template <> struct Simd<float> {
  typedef float V __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int LANES = VECTOR_BYTES / 4, SHIFT = 23, TERMS = 7;
  static constexpr int32_t BIAS = 127 << 23;
  // 1.5 * 2^23: adding it leaves the nearest whole number in the lowest bits
  static constexpr float MAGIC = 12582912.0f, LOW = -87.0f, HIGH = 88.0f;
  static constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
};
template <> struct Simd<double> {
  typedef double V __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(VECTOR_BYTES)));
  static constexpr int LANES = VECTOR_BYTES / 8, SHIFT = 52, TERMS = 13;
  static constexpr int64_t BIAS = int64_t(1023) << 52;
  static constexpr double MAGIC = 6755399441055744.0, LOW = -708.0, HIGH = 709.0;
  static constexpr double LN2_HIGH = 0.693145751953125, LN2_LOW = 1.42860682030941723212e-6;
};
template <typename T> using V = typename Simd<T>::V;

template <typename T> static inline V<T> load(const T *p) { return *reinterpret_cast<const V<T> *>(p); }
template <typename T> static inline void store(T *p, V<T> v) { *reinterpret_cast<V<T> *>(p) = v; }
template <typename T> static inline void add_to(T *p, V<T> v) { store<T>(p, load<T>(p) + v); }
template <typename T> static inline V<T> splat(T x) { return V<T>{} + x; }

template <typename T> static inline T sum(V<T> v) {
  T total = 0;
  for (int lane = 0; lane < Simd<T>::LANES; lane++) total += v[lane];
  return total;
}
#ifdef __AVX512F__
template <> inline float sum<float>(V<float> v) { return _mm512_reduce_add_ps((__m512)v); }
template <> inline double sum<double>(V<double> v) { return _mm512_reduce_add_pd((__m512d)v); }
#endif

// exp(x) = 2^n exp(r), |r| <= ln 2 / 2, the rest by its Taylor series; a NaN stays one.
template <typename T> static inline V<T> exponential(V<T> x) {
  using S = Simd<T>;
  x = x < S::LOW ? splat<T>(S::LOW) : x;
  x = x > S::HIGH ? splat<T>(S::HIGH) : x;
  const V<T> shifted = x * T(1.44269504088896340736) + S::MAGIC;
  const V<T> n = shifted - S::MAGIC;
  const V<T> r = (x - n * S::LN2_HIGH) - n * S::LN2_LOW;
  T factorial = 1;
  T inverse[S::TERMS + 1];
  for (int k = 0; k <= S::TERMS; k++) {
    factorial *= k ? k : 1;
    inverse[k] = T(1) / factorial;
  }
  V<T> series = splat<T>(inverse[S::TERMS]);
#pragma GCC unroll 16
  for (int k = S::TERMS - 1; k >= 0; k--) series = series * r + inverse[k];
  const typename S::I power = ((typename S::I)shifted << S::SHIFT) + S::BIAS;
  return series * (V<T>)power;
}

template <typename T> static inline V<T> reciprocal(V<T> x) { return T(1) / x; }
#ifdef __AVX512F__
template <> inline V<float> reciprocal<float>(V<float> x) {
  // 14 bits, then one step of Newton's: 27 bits, more than a float has
  const V<float> guess = (V<float>)_mm512_rcp14_ps((__m512)x);
  return guess * (2.0f - x * guess);
}
#endif

template <typename T> static inline V<T> sigmoid(V<T> x) { return reciprocal<T>(T(1) + exponential<T>(-x)); }
#ifdef __AVX512F__
// The same with the instructions that AVX-512 has for it; activations are a third of a layer's time. 2^r on
// [-1/2, 1/2] by interpolation at Chebyshev's points, relative error 3e-9. A NaN passes the minimum as its second operand.
template <> inline V<float> sigmoid<float>(V<float> x) {
  const __m512 z = _mm512_min_ps(_mm512_set1_ps(126.0f), (__m512)(x * -1.44269504088896340736f));
  const __m512 n = _mm512_roundscale_ps(z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const V<float> r = (V<float>)(z - n);
  V<float> power = r * 1.54614447e-4f + 1.34004282e-3f;
  power = power * r + 9.61805668e-3f;
  power = power * r + 5.55032723e-2f;
  power = power * r + 2.40226509e-1f;
  power = power * r + 6.93147207e-1f;
  power = power * r + 1.0f;
  return reciprocal<float>(1.0f + (V<float>)_mm512_scalef_ps((__m512)power, n));
}
#endif
template <typename T> static inline T sigmoid_of(T x) { return T(1) / (T(1) + std::exp(-x)); }

// value = silu(x) in place; with a slope array also its derivative s (1 + x (1 - s)).
template <typename T> static inline void silu(T *value, T *slope, int count) {
  for (int k = 0; k < count; k += Simd<T>::LANES) {
    const V<T> x = load<T>(value + k), s = sigmoid<T>(x), y = x * s;
    store<T>(value + k, y);
    if (slope) store<T>(slope + k, s + y - y * s);
  }
}

// out[r] (+)= in[r] · map (depth, width), rows of MICRO_ROWS; START: 0 from zero, 1 from `bias`, 2 add to `out`.
template <typename T, int NV, int START>
static inline void tile_product(const T *in, int in_width, const T *map, int width, int depth, const T *bias, T *out,
                                int out_width) {
  constexpr int L = Simd<T>::LANES;
  V<T> total[MICRO_ROWS][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MICRO_ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++)
      total[r][v] = START == 0 ? V<T>{} : load<T>(START == 1 ? bias + v * L : out + r * out_width + v * L);
  for (int k = 0; k < depth; k++) {
    V<T> weight[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) weight[v] = load<T>(map + k * width + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < MICRO_ROWS; r++) {
      const V<T> x = splat<T>(in[r * in_width + k]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) total[r][v] += x * weight[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MICRO_ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) store<T>(out + r * out_width + v * L, total[r][v]);
}

// out (rows, width) (+)= in (rows, depth of in_width) · map (depth, width)
template <typename T, int START = 0>
static inline void product(int rows, const T *in, int in_width, const T *map, int depth, int width, const T *bias,
                           T *out) {
  constexpr int L = Simd<T>::LANES;
  for (int column = 0; column < width;) {
    const int left = (width - column) / L;
    const int vectors = left >= TILE ? TILE : left;
    for (int row = 0; row < rows; row += MICRO_ROWS) {
      const T *x = in + row * in_width;
      const T *start = START == 1 ? bias + column : nullptr;
      T *y = out + row * width + column;
      switch (vectors) {
        case 1: tile_product<T, 1, START>(x, in_width, map + column, width, depth, start, y, width); break;
        case 2: tile_product<T, 2, START>(x, in_width, map + column, width, depth, start, y, width); break;
        case 3: tile_product<T, 3 < TILE ? 3 : TILE, START>(x, in_width, map + column, width, depth, start, y, width); break;
        default: tile_product<T, TILE, START>(x, in_width, map + column, width, depth, start, y, width);
      }
    }
    column += vectors * L;
  }
}

// out (depth, width) += leftᵀ · right, left (rows, depth of left_width), right (rows, width): a weight's gradient
template <typename T, int NV, int R>
static inline void tile_outer(int rows, const T *left, int left_width, const T *right, int width, T *out) {
  constexpr int L = Simd<T>::LANES;
  V<T> total[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) total[r][v] = load<T>(out + r * width + v * L);
  for (int e = 0; e < rows; e++) {
    V<T> value[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) value[v] = load<T>(right + e * width + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const V<T> x = splat<T>(left[e * left_width + r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) total[r][v] += x * value[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) store<T>(out + r * width + v * L, total[r][v]);
}

template <typename T, int R>
static inline void rows_outer(int rows, const T *left, int left_width, const T *right, int width, T *out) {
  for (int column = 0; column < width;) {
    const int vectors = (width - column) / Simd<T>::LANES >= TILE ? TILE : 1;
    if (vectors == TILE) tile_outer<T, TILE, R>(rows, left, left_width, right + column, width, out + column);
    else tile_outer<T, 1, R>(rows, left, left_width, right + column, width, out + column);
    column += vectors * Simd<T>::LANES;
  }
}

template <typename T>
static inline void outer(int rows, const T *left, int left_width, int depth, const T *right, int width, T *out) {
  int k = 0;
  for (; depth - k >= 6; k += 6) rows_outer<T, 6>(rows, left + k, left_width, right, width, out + k * width);
  for (; depth - k >= 4; k += 4) rows_outer<T, 4>(rows, left + k, left_width, right, width, out + k * width);
  for (; k < depth; k++) rows_outer<T, 1>(rows, left + k, left_width, right, width, out + k * width);
}

template <typename T> static inline T dot(const T *a, const T *b, int width) {
  V<T> total{};
  for (int k = 0; k < width; k += Simd<T>::LANES) total += load<T>(a + k) * load<T>(b + k);
  return sum<T>(total);
}
// y += x * a
template <typename T> static inline void axpy(T *y, T x, const T *a, int width) {
  for (int k = 0; k < width; k += Simd<T>::LANES) add_to<T>(y + k, x * load<T>(a + k));
}
template <typename T> static inline void add_row(T *y, const T *a, int width) {
  for (int k = 0; k < width; k += Simd<T>::LANES) add_to<T>(y + k, load<T>(a + k));
}

// out (width) += sum of the rows: the gradient of a bias
template <typename T> static inline void add_column_sums(int rows, const T *values, int width, T *out) {
  constexpr int L = Simd<T>::LANES;
  for (int k = 0; k < width; k += TILE * L) {
    const int vectors = (width - k) / L < TILE ? (width - k) / L : TILE;
    V<T> total[TILE] = {};
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < vectors; v++) total[v] += load<T>(values + r * width + k + v * L);
    for (int v = 0; v < vectors; v++) add_to<T>(out + k + v * L, total[v]);
  }
}
// As add_row, for any count.
template <typename T> static inline void add_numbers(T *y, const T *a, int count) {
#pragma omp simd
  for (int k = 0; k < count; k++) y[k] += a[k];
}

// silu(x) in place, its first and its second derivative s (1 - s) (2 + x (1 - 2 s)).
template <typename T> static inline void silu_twice(T *value, T *slope, T *curvature, int count) {
  for (int k = 0; k < count; k += Simd<T>::LANES) {
    const V<T> x = load<T>(value + k), s = sigmoid<T>(x), y = x * s;
    store<T>(value + k, y);
    store<T>(slope + k, s + y - y * s);
    store<T>(curvature + k, s * (T(1) - s) * (T(2) + x - 2 * y));
  }
}

}  // namespace egnn
