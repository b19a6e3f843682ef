// The maps that every message of the published layer passes, for a block of rows, forward and backward:
//
//   h = silu(joined),  n = silu(h W2ᵀ + b2),  m = n [sigmoid(n · gate_w + gate_b)],
//   weight = silu(m W1ᵀ + b1) · last [tanh]   (a head: φ_x, φ_xv, φ_Z)
//
// Everything stays in the second cache. `count` rows hold something, `rows` is the next multiple of MICRO_ROWS.
#pragma once
#include "rows.h"

namespace egnn {

static inline int whole_rows(int count) { return (count + MICRO_ROWS - 1) / MICRO_ROWS * MICRO_ROWS; }

template <typename T> struct MessageMaps {
  const T *w2, *w2_t, *b2, *gate_w, *gate_b;  // w2 (out, in) and its transpose; the gate's are null without one
};
template <typename T> struct HeadMaps {
  const T *w1, *w1_t, *b1, *last;
};

// Where the gradients of the maps stand, from an offset on: w2, b2, gate_w, gate_b and w1, b1, last.
static inline int64_t message_weights(int64_t width) { return width * width + 2 * width + 16; }
static inline int64_t head_weights(int64_t width) { return width * width + 2 * width; }

template <typename T> class Messages {
 public:
  Messages(const MessageMaps<T> &maps, int width, int rows, bool slopes)
      : maps_(maps), width_(width), slopes_(slopes), h_(rows * width), dh_(slopes ? rows * width : 0),
        n_(rows * width), dn_(slopes ? rows * width : 0), m_(maps.gate_w ? rows * width : 0), gate_(rows) {}
  T *joined(int row) { return h_.data() + row * width_; }  // where the input is put, and overwritten by h
  T *out() { return maps_.gate_w ? m_.data() : n_.data(); }

  void forward(int count) {
    const int rows = whole_rows(count);
    std::memset(joined(count), 0, sizeof(T) * (rows - count) * width_);
    silu<T>(h_.data(), slopes_ ? dh_.data() : nullptr, rows * width_);
    product<T, 1>(rows, h_.data(), width_, maps_.w2_t, width_, width_, maps_.b2, n_.data());
    silu<T>(n_.data(), slopes_ ? dn_.data() : nullptr, rows * width_);
    if (!maps_.gate_w) return;
    for (int r = 0; r < rows; r++) {
      const T *n = n_.data() + r * width_;
      gate_[r] = sigmoid_of<T>(dot<T>(n, maps_.gate_w, width_) + maps_.gate_b[0]);
      for (int k = 0; k < width_; k += Simd<T>::LANES) store<T>(m_.data() + r * width_ + k, gate_[r] * load<T>(n + k));
    }
  }

  // `g` (rows, width) of the messages, zero from `count` on, becomes that of `joined`; `own` may be null.
  void backward(int count, T *g, T *scratch, WeightSums<T> *own, int64_t offset) {
    constexpr int L = Simd<T>::LANES;
    const int rows = whole_rows(count), all = rows * width_, b2 = width_ * width_;
    if (maps_.gate_w)
      for (int r = 0; r < count; r++) {
        T *row = g + r * width_;
        const T *n = n_.data() + r * width_, s = gate_[r];
        const T g_logit = dot<T>(row, n, width_) * s * (T(1) - s);
        if (own) axpy<T>(own->at(offset + b2 + width_), g_logit, n, width_), *own->at(offset + b2 + 2 * width_) += g_logit;
        for (int k = 0; k < width_; k += L) store<T>(row + k, load<T>(row + k) * s + g_logit * load<T>(maps_.gate_w + k));
      }
    for (int k = 0; k < all; k += L) store<T>(g + k, load<T>(g + k) * load<T>(dn_.data() + k));
    if (own) {
      add_column_sums<T>(count, g, width_, own->at(offset + b2));
      outer<T>(count, g, width_, width_, h_.data(), width_, own->at(offset));
    }
    product<T>(rows, g, width_, maps_.w2, width_, width_, nullptr, scratch);
    for (int k = 0; k < all; k += L) store<T>(g + k, load<T>(scratch + k) * load<T>(dh_.data() + k));
  }

 private:
  const MessageMaps<T> maps_;
  const int width_;
  const bool slopes_;
  Buffer<T> h_, dh_, n_, dn_, m_, gate_;
};

template <typename T> class Head {
 public:
  Head(const HeadMaps<T> &maps, int width, int rows, bool tanh, bool slopes)
      : maps_(maps), width_(width), tanh_(tanh), slopes_(slopes), h_(rows * width), dh_(slopes ? rows * width : 0),
        weight_(rows), g_(rows) {}
  T weight(int row) { return weight_[row]; }

  void forward(int count, const T *message) {
    const int rows = whole_rows(count);
    product<T, 1>(rows, message, width_, maps_.w1_t, width_, width_, maps_.b1, h_.data());
    silu<T>(h_.data(), slopes_ ? dh_.data() : nullptr, rows * width_);
    for (int r = 0; r < count; r++) {
      weight_[r] = dot<T>(h_.data() + r * width_, maps_.last, width_);
      if (tanh_) weight_[r] = std::tanh(weight_[r]);
    }
  }

  // Adds to `g_message` (rows, width) what the gradient of the weights (count) brings.
  void backward(int count, const T *message, const T *g_weight, T *g_message, T *scratch, WeightSums<T> *own,
                int64_t offset) {
    constexpr int L = Simd<T>::LANES;
    const int rows = whole_rows(count), b1 = width_ * width_;
    for (int r = 0; r < count; r++) {
      const T g = tanh_ ? g_weight[r] * (T(1) - weight_[r] * weight_[r]) : g_weight[r];
      g_[r] = g;
      for (int k = 0; k < width_; k += L)
        store<T>(scratch + r * width_ + k, g * load<T>(maps_.last + k) * load<T>(dh_.data() + r * width_ + k));
    }
    std::memset(scratch + count * width_, 0, sizeof(T) * (rows - count) * width_);
    if (own) {
      outer<T>(count, g_.data(), 1, 1, h_.data(), width_, own->at(offset + b1 + width_));
      add_column_sums<T>(count, scratch, width_, own->at(offset + b1));
      outer<T>(count, scratch, width_, width_, message, width_, own->at(offset));
    }
    product<T, 2>(rows, scratch, width_, maps_.w1, width_, width_, nullptr, g_message);
  }

 private:
  const HeadMaps<T> maps_;
  const int width_;
  const bool tanh_, slopes_;
  Buffer<T> h_, dh_, weight_, g_;
};

}  // namespace egnn
