// Unit vectors and Bessel functions times the envelope of every pair, forward and backward (egnn_md/nn/basis.py).
//
// sin(n t) follows from sin t and cos t by the recurrence of Chebyshev's polynomials, in double precision.
#include "rows.h"

namespace egnn {

template <typename T> struct RadialInput {
  int64_t edges, basis;
  double cutoff;
  const T *pair;
};

// Value and slope of the envelope of degree 6 at u = d / cutoff.
static inline double envelope(double u, double &slope) {
  if (u >= 1.0) {
    slope = 0.0;
    return 0.0;
  }
  const double u2 = u * u, u5 = u2 * u2 * u, u6 = u5 * u;
  slope = -168.0 * u5 * (1.0 - u) * (1.0 - u);
  return 1.0 + u6 * (-28.0 + 48.0 * u - 21.0 * u2);
}

template <typename T> static void radial_forward(const RadialInput<T> &in, T *unit, T *radial, int threads) {
  const double scale = std::sqrt(2.0 / in.cutoff), step = M_PI / in.cutoff;
#pragma omp parallel for schedule(static) num_threads(team(threads, in.edges))
  for (int64_t e = 0; e < in.edges; e++) {
    const double x = in.pair[3 * e], y = in.pair[3 * e + 1], z = in.pair[3 * e + 2];
    const double d = std::sqrt(x * x + y * y + z * z), inverse = 1.0 / d;
    unit[3 * e] = T(x * inverse), unit[3 * e + 1] = T(y * inverse), unit[3 * e + 2] = T(z * inverse);
    double slope;
    const double factor = scale * inverse * envelope(d / in.cutoff, slope);
    const double sine = std::sin(step * d), twice = 2.0 * std::cos(step * d);
    double before = 0.0, now = sine;
    for (int64_t n = 0; n < in.basis; n++) {
      radial[e * in.basis + n] = T(factor * now);
      const double next = twice * now - before;
      before = now, now = next;
    }
  }
}

template <typename T>
static void radial_backward(const RadialInput<T> &in, const T *g_unit, const T *g_radial, T *g_pair, int threads) {
  const double scale = std::sqrt(2.0 / in.cutoff), step = M_PI / in.cutoff;
#pragma omp parallel for schedule(static) num_threads(team(threads, in.edges))
  for (int64_t e = 0; e < in.edges; e++) {
    const double v[3] = {in.pair[3 * e], in.pair[3 * e + 1], in.pair[3 * e + 2]};
    const double d = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]), inverse = 1.0 / d;
    double slope;
    const double u = envelope(d / in.cutoff, slope);
    slope /= in.cutoff;
    const double sine = std::sin(step * d), cosine = std::cos(step * d);
    // b_n = scale sin(n t) u / d; its slope is scale [n step cos(n t) u / d + sin(n t) (u' / d - u / d²)]
    double sine_before = 0.0, sine_now = sine, cosine_before = 1.0, cosine_now = cosine, total = 0.0;
    const double by_sine = scale * inverse * (slope - u * inverse), by_cosine = scale * inverse * u * step;
    for (int64_t n = 0; n < in.basis; n++) {
      total += g_radial[e * in.basis + n] * (by_cosine * double(n + 1) * cosine_now + by_sine * sine_now);
      const double sine_next = 2.0 * cosine * sine_now - sine_before;
      const double cosine_next = 2.0 * cosine * cosine_now - cosine_before;
      sine_before = sine_now, sine_now = sine_next, cosine_before = cosine_now, cosine_now = cosine_next;
    }
    double along = 0.0;
    for (int c = 0; c < 3; c++) along += g_unit[3 * e + c] * v[c] * inverse;
    for (int c = 0; c < 3; c++)
      g_pair[3 * e + c] = T((g_unit[3 * e + c] - along * v[c] * inverse) * inverse + total * v[c] * inverse);
  }
}

}  // namespace egnn

#define EGNN_RADIAL(NAME, T)                                                                                         \
  extern "C" void egnn_radial_forward_##NAME(const egnn::RadialInput<T> *in, T *unit, T *radial, int64_t threads) {  \
    egnn::radial_forward<T>(*in, unit, radial, (int)threads);                                                        \
  }                                                                                                                  \
  extern "C" void egnn_radial_backward_##NAME(const egnn::RadialInput<T> *in, const T *g_unit, const T *g_radial,    \
                                              T *g_pair, int64_t threads) {                                          \
    egnn::radial_backward<T>(*in, g_unit, g_radial, g_pair, (int)threads);                                           \
  }
EGNN_RADIAL(float32, float)
EGNN_RADIAL(float64, double)
