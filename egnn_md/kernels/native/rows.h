// Who computes what: edges sorted by receiver are cut between receivers, so that no two threads add to one row.
//
// Sums into receivers are taken edge by edge in order and do not depend on the number of threads. Sums into senders
// follow in a second phase of every panel of edges, where each thread adds what belongs to its own senders, again in
// order. Only the gradients of weights are summed by thread.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "simd.h"

namespace egnn {

// Edges between two exchanges; their gradients fit into the caches. Not a matter of the number of threads: what a
// particle gets as a receiver and as a sender is added in turns of a panel.
constexpr int64_t PANEL = 4096;
constexpr int CHUNKS = 8;         // parts a thread takes in turn where the order does not matter

// Memory on a cache line's boundary, zeroed unless it is overwritten anyway.
template <typename T> class Buffer {
 public:
  explicit Buffer(int64_t count, bool zeroed = true) : count_(count) {
    const size_t bytes = (std::max<int64_t>(count, 1) * sizeof(T) + 127) / 64 * 64;
    data_ = static_cast<T *>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
    if (zeroed) std::memset(static_cast<void *>(data_), 0, bytes);
  }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() { std::free(data_); }
  T *data() { return data_; }
  T &operator[](int64_t k) { return data_[k]; }
  int64_t size() const { return count_; }

 private:
  int64_t count_;
  T *data_;
};

// One thread's share of the gradients of the weights, one after the other in memory. Rounding would grow with the
// number of edges if they were summed one by one: the sums of a few blocks are added up in double precision.
template <typename T> class WeightSums {
 public:
  explicit WeightSums(int64_t count) : recent_(count), total_(count) {}
  T *at(int64_t offset) { return recent_.data() + offset; }
  // To be called after every block.
  void block_done() {
    if (++blocks_ == BLOCKS) flush();
  }
  void add_to(double *all) {
    flush();
    for (int64_t k = 0; k < total_.size(); k++) all[k] += total_[k];
  }

 private:
  static constexpr int BLOCKS = 8;
  void flush() {
    for (int64_t k = 0; k < total_.size(); k++) total_[k] += recent_[k], recent_[k] = T(0);
    blocks_ = 0;
  }
  Buffer<T> recent_;
  Buffer<double> total_;
  int blocks_ = 0;
};

// First receiver of part `part` of `parts`, by number of edges, among receivers [first, last).
static inline int64_t cut(const int64_t *row_start, int64_t first, int64_t last, int part, int parts) {
  const int64_t begin = row_start[first], edges = row_start[last] - begin;
  if (part <= 0) return first;
  if (part >= parts) return last;
  const int64_t wanted = begin + edges * part / parts;
  return std::lower_bound(row_start + first, row_start + last, wanted) - row_start;
}

static inline int team(int threads, int64_t edges) {
  return (int)std::max<int64_t>(1, std::min<int64_t>(threads, edges / (2 * ROWS)));
}

// Receivers at which panels of about PANEL edges begin, the last entry is `nodes`.
static inline std::vector<int64_t> panels(const int64_t *row_start, int64_t nodes) {
  std::vector<int64_t> starts{0};
  while (starts.back() < nodes) {
    const int64_t wanted = row_start[starts.back()] + PANEL;
    int64_t next = std::upper_bound(row_start + starts.back(), row_start + nodes + 1, wanted) - row_start - 1;
    starts.push_back(std::min(nodes, std::max(next, starts.back() + 1)));
  }
  return starts;
}

static inline int64_t longest_panel(const int64_t *row_start, const std::vector<int64_t> &starts) {
  int64_t longest = 0;
  for (size_t p = 0; p + 1 < starts.size(); p++)
    longest = std::max(longest, row_start[starts[p + 1]] - row_start[starts[p]]);
  return longest;
}

// Inside a parallel region: one thread after the other, so that a repeated run gives the same bits.
template <typename F> static inline void in_order_of_threads(int members, F &&act) {
#pragma omp for ordered schedule(static, 1)
  for (int t = 0; t < members; t++) {
#pragma omp ordered
    act();
  }
}

// Receivers of `count` edges from `edge` on; `receiver` is that of the edge before, and moves along.
static inline void receivers_of(const int64_t *row_start, int64_t edge, int count, int64_t &receiver, int64_t *out) {
  for (int r = 0; r < count; r++) {
    while (row_start[receiver + 1] <= edge + r) receiver++;
    out[r] = receiver;
  }
}

// Eight neighbouring senders share an owner: a cache line of their positions, and neighbours spread over threads.
static inline bool owns(int64_t sender, int thread, int threads) { return (sender >> 3) % threads == thread; }


// A backward pass over edges, panel by panel: `run(block, edge, count, place)` handles edges of one thread's receivers
// and leaves what belongs to their senders in the panel, `give(edge, sender, place)` adds it there; `place` counts from
// the panel's beginning. `finish(block)` is called by one thread after the other. `make()` makes a thread's block, which
// has `receivers`.
template <typename Make, typename Run, typename Give, typename Finish>
static void over_panels(const int64_t *row_start, const int64_t *senders, const std::vector<int64_t> &starts, int threads,
                        Make &&make, Run &&run, Give &&give, Finish &&finish) {
#pragma omp parallel num_threads(team(threads, row_start[starts.back()]))
  {
    const int thread = omp_get_thread_num(), members = omp_get_num_threads();
    auto block = make();
    for (size_t p = 0; p + 1 < starts.size(); p++) {
      const int64_t base = row_start[starts[p]], end = row_start[starts[p + 1]];
      const int64_t first = cut(row_start, starts[p], starts[p + 1], thread, members);
      const int64_t last = cut(row_start, starts[p], starts[p + 1], thread + 1, members);
      int64_t receiver = first;
      for (int64_t edge = row_start[first]; edge < row_start[last]; edge += ROWS) {
        const int count = (int)std::min<int64_t>(ROWS, row_start[last] - edge);
        receivers_of(row_start, edge, count, receiver, block->receivers);
        run(*block, edge, count, edge - base);
      }
#pragma omp barrier
      for (int64_t edge = base; edge < end; edge++)
        if (owns(senders[edge], thread, members)) give(edge, senders[edge], edge - base);
#pragma omp barrier
    }
    in_order_of_threads(members, [&] { finish(*block); });
  }
}

}  // namespace egnn
