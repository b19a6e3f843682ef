// Messages between particles of the published layer, forward and backward. Symbols as in egnn_md/kernels/plain.py.
#include "messages.h"

namespace egnn {

template <typename T> struct EdgeInput {
  int64_t nodes, edges, width, features, normalize, tanh;
  const int64_t *row_start, *senders;
  const T *positions, *shifts, *a, *b, *edge_features, *geometry_map;
  MessageMaps<T> message;
  HeadMaps<T> head;
};

// Zero on entry; those of edge features, shifts and weights may be null. `weights` holds those of geometry_map, of the
// message and of the head, one after the other.
template <typename T> struct EdgeGradient {
  T *positions, *shifts, *a, *b, *edge_features;
  double *weights;
};

constexpr double DISTANCE_OFFSET = 1e-8;

template <typename T> class EdgeBlock {
 public:
  EdgeBlock(const EdgeInput<T> &input, bool backward)
      : in(input), width((int)input.width), messages(input.message, width, ROWS, backward),
        head(input.head, width, ROWS, input.tanh, backward), difference(ROWS * 3), squared(ROWS), divisor(ROWS),
        g_weight(ROWS), scratch(backward ? ROWS * width : 0), gm(backward ? ROWS * width : 0), geometry(ROWS * (1 + input.features)),
        own(backward ? (1 + input.features) * width + message_weights(width) + head_weights(width) : 0) {}

  // Messages and weights of edges [edge, edge + count), whose receivers are known.
  void forward(int64_t edge, int count) {
    for (int r = 0; r < count; r++) {
      const int64_t i = receivers[r], j = in.senders[edge + r];
      T *x = difference.data() + 3 * r;
      for (int c = 0; c < 3; c++) {
        x[c] = in.positions[3 * i + c] - in.positions[3 * j + c];
        if (in.shifts) x[c] += in.shifts[3 * (edge + r) + c];
      }
      squared[r] = x[0] * x[0] + x[1] * x[1] + x[2] * x[2];
      divisor[r] = T(1);
      if (in.normalize) {
        divisor[r] = std::sqrt(squared[r]) + T(DISTANCE_OFFSET);
        for (int c = 0; c < 3; c++) x[c] /= divisor[r];
      }
      T *row = messages.joined(r);
      const T *own_part = in.a + i * width, *other_part = in.b + j * width;
      const T *features = in.edge_features + (edge + r) * in.features;
      for (int k = 0; k < width; k += Simd<T>::LANES) {
        V<T> joined = load<T>(own_part + k) + load<T>(other_part + k) + squared[r] * load<T>(in.geometry_map + k);
        for (int f = 0; f < in.features; f++) joined += features[f] * load<T>(in.geometry_map + (1 + f) * width + k);
        store<T>(row + k, joined);
      }
    }
    messages.forward(count);
    head.forward(count, messages.out());
  }

  // After `forward`. `g_joined` (count, width) and `g_difference` (count, 3) go to the panel; what belongs to the
  // receivers and to the edges themselves is added where it belongs.
  void backward(int64_t edge, int count, const T *g_step, const T *g_pooled, const EdgeGradient<T> &out, T *g_joined,
                T *g_difference) {
    constexpr int L = Simd<T>::LANES;
    WeightSums<T> *sums = out.weights ? &own : nullptr;
    for (int r = 0; r < count; r++) {
      const int64_t i = receivers[r];
      const T share = T(1) / T(in.row_start[i + 1] - in.row_start[i]);
      const T *x = difference.data() + 3 * r, *g = g_step + 3 * i;
      g_weight[r] = (g[0] * x[0] + g[1] * x[1] + g[2] * x[2]) * share;
      for (int c = 0; c < 3; c++) g_difference[3 * r + c] = g[c] * share * head.weight(r) / divisor[r];
      for (int k = 0; k < width; k += L) store<T>(gm.data() + r * width + k, share * load<T>(g_pooled + width * i + k));
    }
    std::memset(gm.data() + count * width, 0, sizeof(T) * (whole_rows(count) - count) * width);
    const int64_t message_at = (1 + in.features) * width, head_at = message_at + message_weights(width);
    head.backward(count, messages.out(), g_weight.data(), gm.data(), scratch.data(), sums, head_at);
    messages.backward(count, gm.data(), scratch.data(), sums, message_at);
    std::memcpy(g_joined, gm.data(), sizeof(T) * count * width);
    for (int r = 0; r < count; r++) {
      const T *g = gm.data() + r * width, *features = in.edge_features + (edge + r) * in.features;
      const int64_t i = receivers[r], j = in.senders[edge + r];
      const T g_squared = dot<T>(g, in.geometry_map, width);
      for (int c = 0; c < 3; c++) {
        // the squared distance is that of the undivided difference
        T &total = g_difference[3 * r + c];
        total += 2 * g_squared * difference[3 * r + c] * divisor[r];
        // a particle and its own image move together; by `normalize` a zero difference has a huge gradient
        if (i != j) out.positions[3 * i + c] += total;
        if (out.shifts) out.shifts[3 * (edge + r) + c] = total;
      }
      add_row<T>(out.a + width * i, g, width);
      if (sums) {
        T *row = geometry.data() + r * (1 + in.features);
        row[0] = squared[r];
        std::copy_n(features, in.features, row + 1);
      }
      if (out.edge_features)
        for (int f = 0; f < in.features; f++)
          out.edge_features[(edge + r) * in.features + f] = dot<T>(g, in.geometry_map + (1 + f) * width, width);
    }
    if (sums) {
      const int columns = (int)in.features + 1;
      outer<T>(count, geometry.data(), columns, columns, gm.data(), width, own.at(0));
      own.block_done();
    }
  }

  const EdgeInput<T> &in;
  const int width;
  int64_t receivers[ROWS];
  Messages<T> messages;
  Head<T> head;
  Buffer<T> difference, squared, divisor, g_weight, scratch, gm, geometry;
  WeightSums<T> own;
};

template <typename T> static void edge_forward(const EdgeInput<T> &in, T *step, T *pooled, int threads) {
  const int width = (int)in.width, parts = CHUNKS * team(threads, in.edges);
#pragma omp parallel num_threads(team(threads, in.edges))
  {
    EdgeBlock<T> block(in, false);
#pragma omp for schedule(dynamic, 1)
    for (int part = 0; part < parts; part++) {
      const int64_t first = cut(in.row_start, 0, in.nodes, part, parts);
      const int64_t last = cut(in.row_start, 0, in.nodes, part + 1, parts);
      std::memset(step + 3 * first, 0, sizeof(T) * 3 * (last - first));
      std::memset(pooled + width * first, 0, sizeof(T) * width * (last - first));
      int64_t receiver = first;
      for (int64_t edge = in.row_start[first]; edge < in.row_start[last]; edge += ROWS) {
        const int count = (int)std::min<int64_t>(ROWS, in.row_start[last] - edge);
        receivers_of(in.row_start, edge, count, receiver, block.receivers);
        block.forward(edge, count);
        for (int r = 0; r < count; r++) {
          const int64_t i = block.receivers[r];
          for (int c = 0; c < 3; c++) step[3 * i + c] += block.difference[3 * r + c] * block.head.weight(r);
          add_row<T>(pooled + width * i, block.messages.out() + r * width, width);
        }
      }
      for (int64_t i = first; i < last; i++) {
        const int64_t degree = in.row_start[i + 1] - in.row_start[i];
        if (degree < 2) continue;
        const T share = T(1) / T(degree);
        for (int c = 0; c < 3; c++) step[3 * i + c] *= share;
        for (int k = 0; k < width; k++) pooled[width * i + k] *= share;
      }
    }
  }
}

template <typename T>
static void edge_backward(const EdgeInput<T> &in, const T *g_step, const T *g_pooled, const EdgeGradient<T> &out,
                          int threads) {
  const int width = (int)in.width;
  const std::vector<int64_t> starts = panels(in.row_start, in.nodes);
  const int64_t longest = longest_panel(in.row_start, starts);
  Buffer<T> g_joined(longest * width, false), g_difference(longest * 3, false);
  over_panels(
      in.row_start, in.senders, starts, threads, [&] { return std::make_unique<EdgeBlock<T>>(in, true); },
      [&](EdgeBlock<T> &block, int64_t edge, int count, int64_t place) {
        block.forward(edge, count);
        block.backward(edge, count, g_step, g_pooled, out, g_joined.data() + place * width,
                       g_difference.data() + place * 3);
      },
      [&](int64_t edge, int64_t j, int64_t place) {
        add_row<T>(out.b + width * j, g_joined.data() + place * width, width);
        if (edge >= in.row_start[j] && edge < in.row_start[j + 1]) return;  // its own image
        for (int c = 0; c < 3; c++) out.positions[3 * j + c] -= g_difference[place * 3 + c];
      },
      [&](EdgeBlock<T> &block) {
        if (out.weights) block.own.add_to(out.weights);
      });
}

}  // namespace egnn

#define EGNN_EDGES(NAME, T)                                                                                          \
  extern "C" void egnn_edge_forward_##NAME(const egnn::EdgeInput<T> *in, T *step, T *pooled, int64_t threads) {      \
    egnn::edge_forward<T>(*in, step, pooled, (int)threads);                                                          \
  }                                                                                                                  \
  extern "C" void egnn_edge_backward_##NAME(const egnn::EdgeInput<T> *in, const T *g_step, const T *g_pooled,        \
                                            const egnn::EdgeGradient<T> *out, int64_t threads) {                     \
    egnn::edge_backward<T>(*in, g_step, g_pooled, *out, (int)threads);                                               \
  }
EGNN_EDGES(float32, float)
EGNN_EDGES(float64, double)
