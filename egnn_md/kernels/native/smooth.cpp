// Messages of the smooth network that potentials are made of, forward and backward.
#include "smooth.h"

namespace egnn {

// K is FIXED where that is not zero: loops over a number that the compiler knows are a single instruction.
template <typename T, int FIXED> class SmoothBlock {
 public:
  SmoothBlock(const SmoothInput<T> &input, bool backward)
      : in(input), width((int)input.width), basis((int)input.basis), vectors((int)input.vectors),
        inputs((int)input.inputs), radials((int)input.radials), outputs((int)input.weights), messages(input.message, width, ROWS, backward),
        x(ROWS * inputs), f(ROWS * width), m(ROWS * width), w(ROWS * outputs), g_w(backward ? ROWS * outputs : 0),
        g_f(backward ? ROWS * width : 0), g_n(backward ? ROWS * width : 0), g_x(backward ? ROWS * inputs : 0),
        g_r(backward ? ROWS * input.radials : 0),
        scratch(backward ? ROWS * width : 0),
        own(backward ? smooth_weights(width, inputs, basis, outputs) : 0) {}

  // Messages and weights of edges [edge, edge + count), whose receivers are known.
  void forward(int64_t edge, int count) {
    const int rows = whole_rows(count), K = FIXED ? FIXED : vectors;
    for (int r = 0; r < count; r++) {
      const int64_t i = receivers[r], j = in.senders[edge + r];
      T *row = x.data() + r * inputs;
      std::memcpy(row, in.radial + (edge + r) * basis, sizeof(T) * basis);
      if (!in.first) {
        const T *u = in.unit + 3 * (edge + r), *vi = in.node_vectors + 3 * K * i, *vj = in.node_vectors + 3 * K * j;
        T *received = row + basis, *sent = received + K, *both = sent + K;
#pragma omp simd
        for (int k = 0; k < K; k++) {
          received[k] = u[0] * vi[k] + u[1] * vi[K + k] + u[2] * vi[2 * K + k];
          sent[k] = u[0] * vj[k] + u[1] * vj[K + k] + u[2] * vj[2 * K + k];
          both[k] = vi[k] * vj[k] + vi[K + k] * vj[K + k] + vi[2 * K + k] * vj[2 * K + k];
        }
      }
      const T *own_part = in.a + i * width, *other_part = in.b + j * width;
      for (int k = 0; k < width; k += Simd<T>::LANES)
        store<T>(messages.joined(r) + k, load<T>(own_part + k) + load<T>(other_part + k));
    }
    std::memset(x.data() + count * inputs, 0, sizeof(T) * (rows - count) * inputs);
    std::memset(messages.joined(count), 0, sizeof(T) * (rows - count) * width);
    const int depth = basis + (in.first ? 0 : 3 * K);
    product<T, 2>(rows, x.data(), inputs, in.input_map, depth, width, nullptr, messages.joined(0));
    messages.forward(count);
    product<T>(rows, x.data(), inputs, in.filter, basis, width, nullptr, f.data());
    const T *n = messages.out();
    for (int k = 0; k < rows * width; k += Simd<T>::LANES) store<T>(m.data() + k, load<T>(n + k) * load<T>(f.data() + k));
    product<T>(rows, m.data(), width, in.vector_map_t, width, outputs, nullptr, w.data());
  }

  // After `forward`. `g_joined` (count, width) and `g_sent` (count, 3 K) go to the panel.
  void backward(int64_t edge, int count, const T *g_step, const T *g_pooled, const SmoothGradient<T> &out, T *g_joined,
                T *g_sent) {
    constexpr int L = Simd<T>::LANES;
    const int rows = whole_rows(count), K = FIXED ? FIXED : vectors;
    WeightSums<T> *sums = out.weights ? &own : nullptr;
    for (int r = 0; r < count; r++) {
      const int64_t i = receivers[r], j = in.senders[edge + r];
      const T *g = g_step + 3 * K * i, *u = in.unit + 3 * (edge + r), *wr = w.data() + r * outputs;
      T *gw = g_w.data() + r * outputs, *gu = out.unit + 3 * (edge + r), *gs = g_sent + 3 * K * r;
      T along[3] = {0, 0, 0};
      for (int c = 0; c < 3; c++) {
        T total = 0;
#pragma omp simd reduction(+ : total)
        for (int k = 0; k < K; k++) total += g[c * K + k] * wr[k];
        along[c] = total;
      }
#pragma omp simd
      for (int k = 0; k < K; k++) gw[k] = g[k] * u[0] + g[K + k] * u[1] + g[2 * K + k] * u[2];
      for (int c = 0; c < 3; c++) gu[c] = along[c];
      if (!in.first) {
        const T *vj = in.node_vectors + 3 * K * j;
#pragma omp simd
        for (int k = 0; k < K; k++) {
          gw[K + k] = g[k] * vj[k] + g[K + k] * vj[K + k] + g[2 * K + k] * vj[2 * K + k];
          for (int c = 0; c < 3; c++) gs[c * K + k] = g[c * K + k] * wr[K + k];
        }
      }
      for (int k = 0; k < width; k += L) store<T>(g_n.data() + r * width + k, load<T>(g_pooled + width * i + k));
    }
    const int empty = rows - count;
    std::memset(g_w.data() + count * outputs, 0, sizeof(T) * empty * outputs);
    std::memset(g_n.data() + count * width, 0, sizeof(T) * empty * width);
    const int used = in.first ? K : 2 * K;  // the rest of g_w is padding
    product<T, 2>(rows, g_w.data(), outputs, in.vector_map, used, width, nullptr, g_n.data());
    const int64_t message_at = (int64_t)inputs * width, filter_at = message_at + message_weights(width);
    const int64_t vector_at = filter_at + basis * (int64_t)width;
    if (sums) outer<T>(count, g_w.data(), outputs, used, m.data(), width, own.at(vector_at));
    const T *n = messages.out();
    for (int k = 0; k < rows * width; k += L) {
      const V<T> g = load<T>(g_n.data() + k);
      store<T>(g_f.data() + k, g * load<T>(n + k));
      store<T>(g_n.data() + k, g * load<T>(f.data() + k));
    }
    messages.backward(count, g_n.data(), scratch.data(), sums, message_at);
    std::memcpy(g_joined, g_n.data(), sizeof(T) * count * width);
    const int depth = basis + (in.first ? 0 : 3 * K);
    if (sums) {
      outer<T>(count, x.data(), inputs, depth, g_n.data(), width, own.at(0));
      outer<T>(count, x.data(), inputs, basis, g_f.data(), width, own.at(filter_at));
    }
    product<T>(rows, g_n.data(), width, in.input_map_t, width, inputs, nullptr, g_x.data());
    product<T>(rows, g_f.data(), width, in.filter_t, width, radials, nullptr, g_r.data());
    for (int r = 0; r < count; r++) {
      const int64_t i = receivers[r], j = in.senders[edge + r];
      const T *g = g_x.data() + r * inputs;
      const T *by_filter = g_r.data() + r * radials;
      for (int k = 0; k < basis; k++) out.radial[(edge + r) * basis + k] = g[k] + by_filter[k];
      add_row<T>(out.a + width * i, g_n.data() + r * width, width);
      if (in.first) continue;
      const T *received = g + basis, *sent = received + K, *both = sent + K;
      const T *u = in.unit + 3 * (edge + r), *vi = in.node_vectors + 3 * K * i, *vj = in.node_vectors + 3 * K * j;
      T *gs = g_sent + 3 * K * r, *gv = out.node_vectors + 3 * K * i, *gu = out.unit + 3 * (edge + r);
      for (int c = 0; c < 3; c++) {
        T along = 0;
#pragma omp simd reduction(+ : along)
        for (int k = 0; k < K; k++) {
          along += received[k] * vi[c * K + k] + sent[k] * vj[c * K + k];
          gv[c * K + k] += received[k] * u[c] + both[k] * vj[c * K + k];
          gs[c * K + k] += sent[k] * u[c] + both[k] * vi[c * K + k];
        }
        gu[c] += along;
      }
    }
    if (sums) own.block_done();
  }

  const SmoothInput<T> &in;
  const int width, basis, vectors, inputs, radials, outputs;
  int64_t receivers[ROWS];
  Messages<T> messages;
  Buffer<T> x, f, m, w, g_w, g_f, g_n, g_x, g_r, scratch;
  WeightSums<T> own;
};

template <typename T, int FIXED> static void smooth_forward(const SmoothInput<T> &in, T *step, T *pooled, int threads) {
  const int width = (int)in.width, K = FIXED ? FIXED : (int)in.vectors, parts = CHUNKS * team(threads, in.edges);
#pragma omp parallel num_threads(team(threads, in.edges))
  {
    SmoothBlock<T, FIXED> block(in, false);
#pragma omp for schedule(dynamic, 1)
    for (int part = 0; part < parts; part++) {
      const int64_t first = cut(in.row_start, 0, in.nodes, part, parts);
      const int64_t last = cut(in.row_start, 0, in.nodes, part + 1, parts);
      std::memset(step + 3 * K * first, 0, sizeof(T) * 3 * K * (last - first));
      std::memset(pooled + width * first, 0, sizeof(T) * width * (last - first));
      int64_t receiver = first;
      for (int64_t edge = in.row_start[first]; edge < in.row_start[last]; edge += ROWS) {
        const int count = (int)std::min<int64_t>(ROWS, in.row_start[last] - edge);
        receivers_of(in.row_start, edge, count, receiver, block.receivers);
        block.forward(edge, count);
        for (int r = 0; r < count; r++) {
          const int64_t i = block.receivers[r], j = in.senders[edge + r];
          const T *u = in.unit + 3 * (edge + r), *w = block.w.data() + r * block.outputs;
          T *s = step + 3 * K * i;
          add_row<T>(pooled + width * i, block.m.data() + r * width, width);
          for (int c = 0; c < 3; c++) {
#pragma omp simd
            for (int k = 0; k < K; k++) s[c * K + k] += u[c] * w[k];
          }
          if (in.first) continue;
          const T *vj = in.node_vectors + 3 * K * j;
          for (int c = 0; c < 3; c++) {
#pragma omp simd
            for (int k = 0; k < K; k++) s[c * K + k] += vj[c * K + k] * w[K + k];
          }
        }
      }
    }
  }
}

template <typename T, int FIXED>
static void smooth_backward(const SmoothInput<T> &in, const T *g_step, const T *g_pooled, const SmoothGradient<T> &out,
                            int threads) {
  const int width = (int)in.width, sent = 3 * (FIXED ? FIXED : (int)in.vectors);
  const std::vector<int64_t> starts = panels(in.row_start, in.nodes);
  const int64_t longest = longest_panel(in.row_start, starts);
  Buffer<T> g_joined(longest * width, false), g_sent(longest * sent, false);
  over_panels(
      in.row_start, in.senders, starts, threads, [&] { return std::make_unique<SmoothBlock<T, FIXED>>(in, true); },
      [&](SmoothBlock<T, FIXED> &block, int64_t edge, int count, int64_t place) {
        block.forward(edge, count);
        block.backward(edge, count, g_step, g_pooled, out, g_joined.data() + place * width, g_sent.data() + place * sent);
      },
      [&](int64_t, int64_t j, int64_t place) {
        add_row<T>(out.b + width * j, g_joined.data() + place * width, width);
        if (!in.first) add_numbers<T>(out.node_vectors + sent * j, g_sent.data() + place * sent, sent);
      },
      [&](SmoothBlock<T, FIXED> &block) {
        if (out.weights) block.own.add_to(out.weights);
      });
}

}  // namespace egnn

#define EGNN_SMOOTH(NAME, T)                                                                                         \
  extern "C" void egnn_smooth_forward_##NAME(const egnn::SmoothInput<T> *in, T *step, T *pooled, int64_t threads) {  \
    const auto run = in->vectors == 8 ? egnn::smooth_forward<T, 8> : egnn::smooth_forward<T, 0>;                         \
    run(*in, step, pooled, (int)threads);                                                        \
  }                                                                                                                  \
  extern "C" void egnn_smooth_backward_##NAME(const egnn::SmoothInput<T> *in, const T *g_step, const T *g_pooled,    \
                                              const egnn::SmoothGradient<T> *out, int64_t threads) {                 \
    const auto run = in->vectors == 8 ? egnn::smooth_backward<T, 8> : egnn::smooth_backward<T, 0>;                       \
    run(*in, g_step, g_pooled, *out, (int)threads);                                             \
  }
EGNN_SMOOTH(float32, float)
EGNN_SMOOTH(float64, double)
