// Messages between particles and virtual nodes of the published layer. Symbols as in egnn_md/kernels/plain.py.
//
// A row is a pair (particle i, channel c). A particle's rows belong to one thread; what the virtual nodes receive is
// summed by thread, in double precision, and the threads' sums are added in their order.
#include "messages.h"

namespace egnn {

template <typename T> struct VirtualInput {
  int64_t nodes, graphs, channels, width, tanh;
  const int64_t *batch;
  const T *positions, *places, *is_open, *a, *of_virtual, *distance_map;
  MessageMaps<T> message;
  HeadMaps<T> step_head, place_head;  // φ_xv and φ_Z
};

// Zero on entry. `weights` may be null; it holds those of distance_map, of the message and of both heads.
template <typename T> struct VirtualGradient {
  T *positions, *a;
  double *places, *of_virtual, *weights;
};

template <typename T> class VirtualBlock {
 public:
  VirtualBlock(const VirtualInput<T> &input, bool backward)
      : in(input), width((int)input.width), channels((int)input.channels), particles(std::max(1, ROWS / channels)),
        rows(whole_rows(particles * channels)), messages(input.message, width, rows, backward),
        step_head(input.step_head, width, rows, input.tanh, backward),
        place_head(input.place_head, width, rows, input.tanh, backward), direction(rows * 3), distance(rows),
        g_step_weight(rows), g_place_weight(rows), gm(backward ? rows * width : 0), scratch(backward ? rows * width : 0),
        places(input.graphs * channels * 3), sums(input.graphs * channels * width),
        own(backward ? width + message_weights(width) + 2 * head_weights(width) : 0) {}

  // Particles [first, first + count): messages and weights of their rows.
  void forward(int64_t first, int count) {
    for (int p = 0; p < count; p++) {
      const int64_t i = first + p, graph = in.batch[i];
      for (int c = 0; c < channels; c++) {
        const int r = p * channels + c;
        T *t = direction.data() + 3 * r;
        for (int k = 0; k < 3; k++)
          t[k] = (in.places[(graph * channels + c) * 3 + k] - in.positions[3 * i + k]) * in.is_open[graph];
        distance[r] = std::sqrt(t[0] * t[0] + t[1] * t[1] + t[2] * t[2]);
        const T *own_part = in.a + i * width, *other_part = in.of_virtual + (graph * channels + c) * width;
        for (int k = 0; k < width; k += Simd<T>::LANES)
          store<T>(messages.joined(r) + k, load<T>(own_part + k) + load<T>(other_part + k) +
                                               distance[r] * load<T>(in.distance_map + k));
      }
    }
    messages.forward(count * channels);
    step_head.forward(count * channels, messages.out());
    place_head.forward(count * channels, messages.out());
  }

  void collect(int64_t first, int count, T *step, T *pooled) {
    const T share = T(1) / T(channels);
    for (int p = 0; p < count; p++) {
      const int64_t i = first + p, graph = in.batch[i];
      std::memset(step + 3 * i, 0, sizeof(T) * 3);
      std::memset(pooled + width * i, 0, sizeof(T) * width);
      for (int c = 0; c < channels; c++) {
        const int r = p * channels + c;
        const T *t = direction.data() + 3 * r, *m = messages.out() + r * width;
        for (int k = 0; k < 3; k++) {
          step[3 * i + k] -= share * t[k] * step_head.weight(r);
          places[(graph * channels + c) * 3 + k] += t[k] * place_head.weight(r);
        }
        axpy<T>(pooled + width * i, share, m, width);
        double *sum = sums.data() + (graph * channels + c) * width;
        for (int k = 0; k < width; k++) sum[k] += m[k];
      }
    }
  }

  // After `forward`; the gradients of the four outputs are those of the mean step and message, and of the sums.
  void backward(int64_t first, int count, const T *g_step, const T *g_pooled, const T *g_places, const T *g_sums,
                const VirtualGradient<T> &out) {
    constexpr int L = Simd<T>::LANES;
    WeightSums<T> *weights = out.weights ? &own : nullptr;
    const T share = T(1) / T(channels);
    for (int p = 0; p < count; p++) {
      const int64_t i = first + p, graph = in.batch[i];
      const T *gs = g_step + 3 * i;
      for (int c = 0; c < channels; c++) {
        const int r = p * channels + c;
        const T *t = direction.data() + 3 * r, *gz = g_places + (graph * channels + c) * 3;
        g_step_weight[r] = -share * (gs[0] * t[0] + gs[1] * t[1] + gs[2] * t[2]);
        g_place_weight[r] = gz[0] * t[0] + gz[1] * t[1] + gz[2] * t[2];
        for (int k = 0; k < width; k += L)
          store<T>(gm.data() + r * width + k, share * load<T>(g_pooled + width * i + k) +
                                                  load<T>(g_sums + (graph * channels + c) * width + k));
      }
    }
    const int filled = count * channels;
    std::memset(gm.data() + filled * width, 0, sizeof(T) * (whole_rows(filled) - filled) * width);
    const int64_t step_at = width + message_weights(width), place_at = step_at + head_weights(width);
    step_head.backward(filled, messages.out(), g_step_weight.data(), gm.data(), scratch.data(), weights, step_at);
    place_head.backward(filled, messages.out(), g_place_weight.data(), gm.data(), scratch.data(), weights, place_at);
    messages.backward(filled, gm.data(), scratch.data(), weights, width);
    for (int p = 0; p < count; p++) {
      const int64_t i = first + p, graph = in.batch[i];
      const T *gs = g_step + 3 * i;
      for (int c = 0; c < channels; c++) {
        const int r = p * channels + c;
        const int64_t node = graph * channels + c;
        const T *g = gm.data() + r * width, *t = direction.data() + 3 * r, *gz = g_places + node * 3;
        // the slope of a length at zero is taken as zero, as torch does
        const T along = distance[r] > 0 ? dot<T>(g, in.distance_map, width) / distance[r] : T(0);
        for (int k = 0; k < 3; k++) {
          const T total = (gz[k] * place_head.weight(r) - share * gs[k] * step_head.weight(r) + along * t[k]) *
                          in.is_open[graph];
          out.positions[3 * i + k] -= total;
          places[node * 3 + k] += total;
        }
        add_row<T>(out.a + width * i, g, width);
        double *sum = sums.data() + node * width;
        for (int k = 0; k < width; k++) sum[k] += g[k];
      }
    }
    if (weights) {
      outer<T>(filled, distance.data(), 1, 1, gm.data(), width, own.at(0));
      own.block_done();
    }
  }

  const VirtualInput<T> &in;
  const int width, channels, particles, rows;
  Messages<T> messages;
  Head<T> step_head, place_head;
  Buffer<T> direction, distance, g_step_weight, g_place_weight, gm, scratch;
  Buffer<double> places, sums;  // this thread's
  WeightSums<T> own;
};

static inline void add_all(Buffer<double> &own, double *all) {
  for (int64_t k = 0; k < own.size(); k++) all[k] += own[k];
}

// `places` and `sums` are zero on entry.
template <typename T>
static void virtual_forward(const VirtualInput<T> &in, T *step, T *pooled, double *places, double *sums, int threads) {
#pragma omp parallel num_threads(team(threads, in.nodes * in.channels))
  {
    const int thread = omp_get_thread_num(), members = omp_get_num_threads();
    VirtualBlock<T> block(in, false);
    const int64_t end = in.nodes * (thread + 1) / members;
    for (int64_t i = in.nodes * thread / members; i < end; i += block.particles) {
      const int count = (int)std::min<int64_t>(block.particles, end - i);
      block.forward(i, count);
      block.collect(i, count, step, pooled);
    }
    in_order_of_threads(members, [&] { add_all(block.places, places), add_all(block.sums, sums); });
  }
}

template <typename T>
static void virtual_backward(const VirtualInput<T> &in, const T *g_step, const T *g_pooled, const T *g_places,
                             const T *g_sums, const VirtualGradient<T> &out, int threads) {
#pragma omp parallel num_threads(team(threads, in.nodes * in.channels))
  {
    const int thread = omp_get_thread_num(), members = omp_get_num_threads();
    VirtualBlock<T> block(in, true);
    const int64_t end = in.nodes * (thread + 1) / members;
    for (int64_t i = in.nodes * thread / members; i < end; i += block.particles) {
      const int count = (int)std::min<int64_t>(block.particles, end - i);
      block.forward(i, count);
      block.backward(i, count, g_step, g_pooled, g_places, g_sums, out);
    }
    in_order_of_threads(members, [&] {
      add_all(block.places, out.places), add_all(block.sums, out.of_virtual);
      if (out.weights) block.own.add_to(out.weights);
    });
  }
}

}  // namespace egnn

#define EGNN_VIRTUAL(NAME, T)                                                                                        \
  extern "C" void egnn_virtual_forward_##NAME(const egnn::VirtualInput<T> *in, T *step, T *pooled, double *places,   \
                                              double *sums, int64_t threads) {                                       \
    egnn::virtual_forward<T>(*in, step, pooled, places, sums, (int)threads);                                         \
  }                                                                                                                  \
  extern "C" void egnn_virtual_backward_##NAME(const egnn::VirtualInput<T> *in, const T *g_step, const T *g_pooled,  \
                                               const T *g_places, const T *g_sums,                                   \
                                               const egnn::VirtualGradient<T> *out, int64_t threads) {               \
    egnn::virtual_backward<T>(*in, g_step, g_pooled, g_places, g_sums, *out, (int)threads);                          \
  }
EGNN_VIRTUAL(float32, float)
EGNN_VIRTUAL(float64, double)
