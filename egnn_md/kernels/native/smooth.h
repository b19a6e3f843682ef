// Arguments of the messages of the smooth network. Symbols as in egnn_md/kernels/plain.py (smooth_messages).
#pragma once
#include "messages.h"

namespace egnn {

template <typename T> struct SmoothInput {
  // padded numbers: `inputs` of radial functions and geometry together, `radials` of the former alone, `weights` of the
  // vectors' weights
  int64_t nodes, edges, width, basis, vectors, first, inputs, radials, weights;
  const int64_t *row_start, *senders;
  const T *unit, *radial, *a, *b, *node_vectors;
  const T *input_map, *input_map_t;                 // (inputs, width): radial functions, then geometry
  MessageMaps<T> message;
  const T *filter, *filter_t;                       // (basis, width), (width, radials)
  const T *vector_map, *vector_map_t;               // (weights, width), (width, weights)
};

// Zero on entry. `weights` may be null; it holds those of input_map, message, filter, vector_map.
template <typename T> struct SmoothGradient {
  T *unit, *radial, *a, *b, *node_vectors;
  double *weights;
};

static inline int64_t smooth_weights(int64_t width, int64_t inputs, int64_t basis, int64_t weights) {
  return inputs * width + message_weights(width) + basis * width + weights * width;
}

}  // namespace egnn
