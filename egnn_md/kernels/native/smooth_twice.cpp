// Second derivatives of the smooth network's messages: what training on forces needs.
//
// With G = ∂L/∂x the gradient that smooth.cpp gives, L = <g_step, step> + <g_pooled, pooled>, and cotangents c of G:
// Σ c · G is the derivative of L along x + ε c. So a block is evaluated together with its tangent (names that end in
// `_t`), which is the gradient by g; a reverse pass over both gives the gradient by x. There every value has an adjoint
// `a_` and every tangent one `b_`:
//
//   y = s(x), y_t = s'(x) x_t:      b_x = b_y s'(x),     a_x = a_y s'(x) + b_y s''(x) x_t
//   m = n f,  m_t = n_t f + n f_t:  b_n = b_m f,  a_n = a_m f + b_m f_t,   and the same for f
//
// Cotangents of the weights are not taken (the caller has another way for those).
#include "smooth.h"

namespace egnn {

template <typename T> struct SmoothTangent {
  const T *unit, *radial, *a, *b, *node_vectors;  // cotangents c; the last is null in the first layer
};

// Zero on entry: gradients by g (step, pooled) and by x; `weights` may be null.
template <typename T> struct SmoothSecond {
  T *step, *pooled, *unit, *radial, *a, *b, *node_vectors;
  double *weights;
};

template <typename T, int FIXED> class SmoothTwiceBlock {
 public:
  SmoothTwiceBlock(const SmoothInput<T> &input, const SmoothTangent<T> &tangent)
      : in(input), along(tangent), width((int)input.width), basis((int)input.basis), vectors((int)input.vectors),
        inputs((int)input.inputs), radials((int)input.radials), outputs((int)input.weights), x(ROWS * inputs), x_t(ROWS * inputs), h(ROWS * width),
        h1(ROWS * width), h2(ROWS * width), p_t(ROWS * width), h_t(ROWS * width), n(ROWS * width), n1(ROWS * width),
        n2(ROWS * width), z_t(ROWS * width), n_t(ROWS * width), f(ROWS * width), f_t(ROWS * width), m(ROWS * width),
        m_t(ROWS * width), w(ROWS * outputs), w_t(ROWS * outputs), a_w(ROWS * outputs), b_w(ROWS * outputs),
        a_m(ROWS * width), b_m(ROWS * width), a_f(ROWS * width), b_f(ROWS * width), a_h(ROWS * width),
        b_h(ROWS * width), a_x(ROWS * inputs), a_r(ROWS * input.radials), b_x(ROWS * inputs),
        own(smooth_weights(width, inputs, basis, outputs)) {}

  // `g_joined` (count, width) and `g_sent` (count, 3 K) go to the panel.
  void run(int64_t edge, int count, const T *g_step, const T *g_pooled, const SmoothSecond<T> &out, T *g_joined,
           T *g_sent) {
    gather(edge, count);
    forward(whole_rows(count));
    outward(edge, count, g_step, g_pooled, out, g_sent);
    reverse(count, out.weights != nullptr);
    std::memcpy(g_joined, a_h.data(), sizeof(T) * count * width);
    inward(edge, count, out, g_sent);
    if (out.weights) own.block_done();
  }

  const SmoothInput<T> &in;
  const SmoothTangent<T> &along;
  int64_t receivers[ROWS];

 private:
  static constexpr int L = Simd<T>::LANES;
  int depth() const { return basis + (in.first ? 0 : 3 * vectors); }

  // û·V and V·V' of values, and their tangents; the joined parts of the particles.
  void gather(int64_t edge, int count) {
    const int K = FIXED ? FIXED : vectors;
    for (int r = 0; r < count; r++) {
      const int64_t i = receivers[r], j = in.senders[edge + r];
      T *row = x.data() + r * inputs, *row_t = x_t.data() + r * inputs;
      std::memcpy(row, in.radial + (edge + r) * basis, sizeof(T) * basis);
      std::memcpy(row_t, along.radial + (edge + r) * basis, sizeof(T) * basis);
      if (!in.first) {
        const T *u = in.unit + 3 * (edge + r), *u_t = along.unit + 3 * (edge + r);
        const T *vi = in.node_vectors + 3 * K * i, *vj = in.node_vectors + 3 * K * j;
        const T *vi_t = along.node_vectors + 3 * K * i, *vj_t = along.node_vectors + 3 * K * j;
        T *g = row + basis, *g_t = row_t + basis;
        std::memset(g, 0, sizeof(T) * 3 * K);
        std::memset(g_t, 0, sizeof(T) * 3 * K);
        for (int c = 0; c < 3; c++) {
#pragma omp simd
          for (int k = 0; k < K; k++) {
            const T p = vi[c * K + k], q = vj[c * K + k], p_dot = vi_t[c * K + k], q_dot = vj_t[c * K + k];
            g[k] += u[c] * p, g[K + k] += u[c] * q, g[2 * K + k] += p * q;
            g_t[k] += u_t[c] * p + u[c] * p_dot, g_t[K + k] += u_t[c] * q + u[c] * q_dot;
            g_t[2 * K + k] += p_dot * q + p * q_dot;
          }
        }
      }
      for (int k = 0; k < width; k += L) {
        store<T>(h.data() + r * width + k, load<T>(in.a + i * width + k) + load<T>(in.b + j * width + k));
        store<T>(p_t.data() + r * width + k, load<T>(along.a + i * width + k) + load<T>(along.b + j * width + k));
      }
    }
    const int empty = whole_rows(count) - count;
    for (Buffer<T> *rows : {&x, &x_t}) std::memset(rows->data() + count * inputs, 0, sizeof(T) * empty * inputs);
    for (Buffer<T> *rows : {&h, &p_t}) std::memset(rows->data() + count * width, 0, sizeof(T) * empty * width);
  }

  void forward(int rows) {
    const int all = rows * width;
    product<T, 2>(rows, x.data(), inputs, in.input_map, depth(), width, nullptr, h.data());
    product<T, 2>(rows, x_t.data(), inputs, in.input_map, depth(), width, nullptr, p_t.data());
    silu_twice<T>(h.data(), h1.data(), h2.data(), all);
    for (int k = 0; k < all; k += L) store<T>(h_t.data() + k, load<T>(h1.data() + k) * load<T>(p_t.data() + k));
    product<T, 1>(rows, h.data(), width, in.message.w2_t, width, width, in.message.b2, n.data());
    product<T>(rows, h_t.data(), width, in.message.w2_t, width, width, nullptr, z_t.data());
    silu_twice<T>(n.data(), n1.data(), n2.data(), all);
    product<T>(rows, x.data(), inputs, in.filter, basis, width, nullptr, f.data());
    product<T>(rows, x_t.data(), inputs, in.filter, basis, width, nullptr, f_t.data());
    for (int k = 0; k < all; k += L) {
      const V<T> value = load<T>(n.data() + k), tangent = load<T>(n1.data() + k) * load<T>(z_t.data() + k);
      const V<T> factor = load<T>(f.data() + k);
      store<T>(n_t.data() + k, tangent);
      store<T>(m.data() + k, value * factor);
      store<T>(m_t.data() + k, tangent * factor + value * load<T>(f_t.data() + k));
    }
    product<T>(rows, m.data(), width, in.vector_map_t, width, outputs, nullptr, w.data());
    product<T>(rows, m_t.data(), width, in.vector_map_t, width, outputs, nullptr, w_t.data());
  }

  // The gradient by g is the tangent of the outputs; adjoints of w, and what û and V_j have of the step.
  void outward(int64_t edge, int count, const T *g_step, const T *g_pooled, const SmoothSecond<T> &out, T *g_sent) {
    const int K = FIXED ? FIXED : vectors;
    for (int r = 0; r < count; r++) {
      const int64_t i = receivers[r], j = in.senders[edge + r];
      const T *g = g_step + 3 * K * i, *u = in.unit + 3 * (edge + r), *u_t = along.unit + 3 * (edge + r);
      const T *wr = w.data() + r * outputs, *wr_t = w_t.data() + r * outputs;
      T *aw = a_w.data() + r * outputs, *bw = b_w.data() + r * outputs, *s = out.step + 3 * K * i;
      T *gu = out.unit + 3 * (edge + r), *gs = g_sent + 3 * K * r;
      std::memset(aw, 0, sizeof(T) * outputs);
      std::memset(bw, 0, sizeof(T) * outputs);
      for (int c = 0; c < 3; c++) {
        T total = 0;
#pragma omp simd reduction(+ : total)
        for (int k = 0; k < K; k++) {
          const T gk = g[c * K + k];
          s[c * K + k] += u_t[c] * wr[k] + u[c] * wr_t[k];
          bw[k] += gk * u[c], aw[k] += gk * u_t[c];
          total += gk * wr_t[k];
        }
        gu[c] = total;
      }
      if (!in.first) {
        const T *vj = in.node_vectors + 3 * K * j, *vj_t = along.node_vectors + 3 * K * j;
        for (int c = 0; c < 3; c++) {
#pragma omp simd
          for (int k = 0; k < K; k++) {
            const T gk = g[c * K + k];
            s[c * K + k] += vj_t[c * K + k] * wr[K + k] + vj[c * K + k] * wr_t[K + k];
            bw[K + k] += gk * vj[c * K + k], aw[K + k] += gk * vj_t[c * K + k];
            gs[c * K + k] = gk * wr_t[K + k];
          }
        }
      }
      add_row<T>(out.pooled + width * i, m_t.data() + r * width, width);
      std::memcpy(b_m.data() + r * width, g_pooled + width * i, sizeof(T) * width);
    }
    const int empty = whole_rows(count) - count;
    for (Buffer<T> *rows : {&a_w, &b_w}) std::memset(rows->data() + count * outputs, 0, sizeof(T) * empty * outputs);
    std::memset(b_m.data() + count * width, 0, sizeof(T) * empty * width);
  }

  // From w back to the inputs of the first map; a_h ends as the adjoint of what particles brought to it.
  void reverse(int count, bool weights) {
    const int rows = whole_rows(count), all = rows * width, used = in.first ? vectors : 2 * vectors;
    const int64_t message_at = (int64_t)inputs * width, filter_at = message_at + message_weights(width);
    const int64_t vector_at = filter_at + basis * (int64_t)width;
    product<T>(rows, a_w.data(), outputs, in.vector_map, used, width, nullptr, a_m.data());
    product<T, 2>(rows, b_w.data(), outputs, in.vector_map, used, width, nullptr, b_m.data());
    if (weights) {
      outer<T>(count, a_w.data(), outputs, used, m.data(), width, own.at(vector_at));
      outer<T>(count, b_w.data(), outputs, used, m_t.data(), width, own.at(vector_at));
    }
    for (int k = 0; k < all; k += L) {
      const V<T> am = load<T>(a_m.data() + k), bm = load<T>(b_m.data() + k), factor = load<T>(f.data() + k);
      const V<T> an = am * factor + bm * load<T>(f_t.data() + k), bn = bm * factor;
      store<T>(a_f.data() + k, am * load<T>(n.data() + k) + bm * load<T>(n_t.data() + k));
      store<T>(b_f.data() + k, bm * load<T>(n.data() + k));
      const V<T> slope = load<T>(n1.data() + k);
      store<T>(a_m.data() + k, an * slope + bn * load<T>(n2.data() + k) * load<T>(z_t.data() + k));
      store<T>(b_m.data() + k, bn * slope);
    }
    if (weights) {
      outer<T>(count, x.data(), inputs, basis, a_f.data(), width, own.at(filter_at));
      outer<T>(count, x_t.data(), inputs, basis, b_f.data(), width, own.at(filter_at));
      outer<T>(count, a_m.data(), width, width, h.data(), width, own.at(message_at));
      outer<T>(count, b_m.data(), width, width, h_t.data(), width, own.at(message_at));
      add_column_sums<T>(count, a_m.data(), width, own.at(message_at + (int64_t)width * width));
    }
    product<T>(rows, a_m.data(), width, in.message.w2, width, width, nullptr, a_h.data());
    product<T>(rows, b_m.data(), width, in.message.w2, width, width, nullptr, b_h.data());
    for (int k = 0; k < all; k += L) {
      const V<T> slope = load<T>(h1.data() + k), b = load<T>(b_h.data() + k);
      store<T>(a_h.data() + k, load<T>(a_h.data() + k) * slope + b * load<T>(h2.data() + k) * load<T>(p_t.data() + k));
      store<T>(b_h.data() + k, b * slope);
    }
    if (weights) {
      outer<T>(count, x.data(), inputs, depth(), a_h.data(), width, own.at(0));
      outer<T>(count, x_t.data(), inputs, depth(), b_h.data(), width, own.at(0));
    }
    product<T>(rows, a_h.data(), width, in.input_map_t, width, inputs, nullptr, a_x.data());
    product<T>(rows, a_f.data(), width, in.filter_t, width, radials, nullptr, a_r.data());
    if (!in.first) product<T>(rows, b_h.data(), width, in.input_map_t, width, inputs, nullptr, b_x.data());
  }

  // What the geometry gives to û, V_i and V_j.
  void inward(int64_t edge, int count, const SmoothSecond<T> &out, T *g_sent) {
    const int K = FIXED ? FIXED : vectors;
    for (int r = 0; r < count; r++) {
      const int64_t i = receivers[r], j = in.senders[edge + r];
      const T *a = a_x.data() + r * inputs, *b = b_x.data() + r * inputs;
      const T *by_filter = a_r.data() + r * radials;
      for (int k = 0; k < basis; k++) out.radial[(edge + r) * basis + k] = a[k] + by_filter[k];
      add_row<T>(out.a + width * i, a_h.data() + r * width, width);
      if (in.first) continue;
      a += basis, b += basis;
      const T *u = in.unit + 3 * (edge + r), *u_t = along.unit + 3 * (edge + r);
      const T *vi = in.node_vectors + 3 * K * i, *vj = in.node_vectors + 3 * K * j;
      const T *vi_t = along.node_vectors + 3 * K * i, *vj_t = along.node_vectors + 3 * K * j;
      T *gv = out.node_vectors + 3 * K * i, *gs = g_sent + 3 * K * r, *gu = out.unit + 3 * (edge + r);
      for (int c = 0; c < 3; c++) {
        T total = 0;
#pragma omp simd reduction(+ : total)
        for (int k = 0; k < K; k++) {
          const T p = vi[c * K + k], q = vj[c * K + k], p_dot = vi_t[c * K + k], q_dot = vj_t[c * K + k];
          total += a[k] * p + b[k] * p_dot + a[K + k] * q + b[K + k] * q_dot;
          gv[c * K + k] += a[k] * u[c] + b[k] * u_t[c] + a[2 * K + k] * q + b[2 * K + k] * q_dot;
          gs[c * K + k] += a[K + k] * u[c] + b[K + k] * u_t[c] + a[2 * K + k] * p + b[2 * K + k] * p_dot;
        }
        gu[c] += total;
      }
    }
  }

  const int width, basis, vectors, inputs, radials, outputs;
  Buffer<T> x, x_t, h, h1, h2, p_t, h_t, n, n1, n2, z_t, n_t, f, f_t, m, m_t, w, w_t;
  Buffer<T> a_w, b_w, a_m, b_m, a_f, b_f, a_h, b_h, a_x, a_r, b_x;

 public:
  WeightSums<T> own;
};

template <typename T, int FIXED>
static void smooth_twice(const SmoothInput<T> &in, const SmoothTangent<T> &along, const T *g_step, const T *g_pooled,
                         const SmoothSecond<T> &out, int threads) {
  const int width = (int)in.width, sent = 3 * (int)in.vectors;
  const std::vector<int64_t> starts = panels(in.row_start, in.nodes);
  const int64_t longest = longest_panel(in.row_start, starts);
  Buffer<T> g_joined(longest * width, false), g_sent(longest * sent, false);
  over_panels(
      in.row_start, in.senders, starts, threads, [&] { return std::make_unique<SmoothTwiceBlock<T, FIXED>>(in, along); },
      [&](SmoothTwiceBlock<T, FIXED> &block, int64_t edge, int count, int64_t place) {
        block.run(edge, count, g_step, g_pooled, out, g_joined.data() + place * width, g_sent.data() + place * sent);
      },
      [&](int64_t, int64_t j, int64_t place) {
        add_row<T>(out.b + width * j, g_joined.data() + place * width, width);
        if (!in.first) add_numbers<T>(out.node_vectors + sent * j, g_sent.data() + place * sent, sent);
      },
      [&](SmoothTwiceBlock<T, FIXED> &block) {
        if (out.weights) block.own.add_to(out.weights);
      });
}

}  // namespace egnn

#define EGNN_SMOOTH_TWICE(NAME, T)                                                                                   \
  extern "C" void egnn_smooth_twice_##NAME(const egnn::SmoothInput<T> *in, const egnn::SmoothTangent<T> *along,      \
                                           const T *g_step, const T *g_pooled, const egnn::SmoothSecond<T> *out,     \
                                           int64_t threads) {                                                        \
    const auto run = in->vectors == 8 ? egnn::smooth_twice<T, 8> : egnn::smooth_twice<T, 0>;                            \
    run(*in, *along, g_step, g_pooled, *out, (int)threads);                                        \
  }
EGNN_SMOOTH_TWICE(float32, float)
EGNN_SMOOTH_TWICE(float64, double)
