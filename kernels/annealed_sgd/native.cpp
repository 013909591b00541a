// annealed_sgd_ on the CPU: one pass over the flat buffers, vectorised by the
// compiler, split evenly over the threads.
#include "../native.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>
#include <omp.h>

#include <algorithm>
#include <iterator>
#include <vector>

namespace nb = nanobind;

namespace seal_fast {
namespace {

// One row of the segment table, and one row of the hyper table: see layout.py
// and HYPER in __init__.py.
struct Segment {
  int64_t begin, length, group, grad, offset;
};
struct Hyper {
  double lr, momentum, weight_decay, direction, scale;
};

// The flat buffers. Null: not asked for.
template <typename T>
struct Flat {
  T *param, *momentum, *ema;
  bf16* half;
};

template <typename T>
struct Coefficients {
  T inv_scale, momentum, weight_decay, step, ema_new;
};

// The update rule for n neighbouring elements of one group. What is not asked
// for costs nothing: it is not compiled.
template <typename T, typename G, bool kEma, bool kHalf, bool kNorms>
void update(T* __restrict p, T* __restrict buf, const G* __restrict grad, T* __restrict ema, bf16* __restrict half,
            int64_t n, const Coefficients<T> c, double* norms) {
  double grad_square = 0, update_square = 0;
#pragma omp simd reduction(+ : grad_square, update_square)
  for (int64_t i = 0; i < n; ++i) {
    T g = static_cast<T>(grad[i]) * c.inv_scale;
    T old_p = p[i];
    T b = c.momentum * buf[i] + (g + c.weight_decay * old_p);
    T delta = c.step * b;
    // A frozen parameter keeps its bits, even where the buffer holds an
    // infinity.
    T new_p = c.step == 0 ? old_p : old_p - delta;
    buf[i] = b;
    p[i] = new_p;
    if constexpr (kEma) ema[i] += c.ema_new * (new_p - ema[i]);
    // Only the bits: GCC does not vectorise the assignment of a struct, which made the pass three times slower.
    if constexpr (kHalf) half[i].bits = bf16(static_cast<float>(new_p)).bits;
    if constexpr (kNorms) {
      grad_square += static_cast<double>(g) * static_cast<double>(g);
      update_square += static_cast<double>(delta) * static_cast<double>(delta);
    }
  }
  if constexpr (kNorms) {
    norms[0] += grad_square;
    if (c.step != 0) norms[1] += update_square;
  }
}

template <typename T, typename G>
using Update = void (*)(T*, T*, const G*, T*, bf16*, int64_t, Coefficients<T>, double*);

template <typename T, typename G>
Update<T, G> choose(bool ema, bool half, bool norms) {
  static constexpr Update<T, G> table[] = {
      update<T, G, false, false, false>, update<T, G, false, false, true>, update<T, G, false, true, false>,
      update<T, G, false, true, true>,   update<T, G, true, false, false>, update<T, G, true, false, true>,
      update<T, G, true, true, false>,   update<T, G, true, true, true>,
  };
  return table[ema * 4 + half * 2 + norms];
}

struct Arguments {
  std::vector<Segment> segments;  // only those that have a gradient
  const std::vector<uintptr_t>& grads;
  const Hyper* hyper;
  double inv_scale, ema_decay;
};

// Updates the elements of rank [first, last), counted over all segments: an
// even share of the work for a thread.
template <typename T, typename G>
void update_range(const Flat<T>& flat, const Arguments& a, Update<T, G> f, int64_t first, int64_t last, double* norms) {
  int64_t rank = 0;
  for (const Segment& s : a.segments) {
    int64_t from = std::max<int64_t>(first - rank, 0), to = std::min(last - rank, s.length);
    rank += s.length;
    if (from >= to) continue;
    const Hyper& h = a.hyper[s.group];
    Coefficients<T> c{static_cast<T>(a.inv_scale), static_cast<T>(h.momentum), static_cast<T>(h.weight_decay),
                      static_cast<T>(h.direction * h.scale * h.lr), static_cast<T>(1 - a.ema_decay)};
    int64_t at = s.begin + from;
    f(flat.param + at, flat.momentum + at, pointer<const G>(a.grads[s.grad]) + s.offset + from,
      flat.ema ? flat.ema + at : nullptr, flat.half ? flat.half + at : nullptr, to - from, c,
      norms ? norms + 2 * s.group : nullptr);
  }
}

template <typename T, typename G>
void update_all(const Flat<T>& flat, const Arguments& a, int64_t groups, double* norms) {
  Update<T, G> f = choose<T, G>(flat.ema, flat.half, norms);
  int64_t total = 0;
  for (const Segment& s : a.segments) total += s.length;
  int threads = total < kSerialElements ? 1 : omp_get_max_threads();
  // Each thread adds up on its own; the sum is then taken in thread order, so
  // that a run repeats itself to the last bit.
  int64_t row = norms ? 2 * groups : 0;
  std::vector<double> sums(threads * row, 0.0);
#pragma omp parallel num_threads(threads)
  {
    int thread = omp_get_thread_num(), team = omp_get_num_threads();
    // Shares end at multiples of 64 elements, so that threads do not write to
    // the same cache line.
    auto share = [&](int64_t t) { return t == team ? total : total * t / team / 64 * 64; };
    std::vector<double> mine(row, 0.0);
    update_range<T, G>(flat, a, f, share(thread), share(thread + 1), norms ? mine.data() : nullptr);
    std::copy(mine.begin(), mine.end(), sums.begin() + thread * row);
  }
  for (size_t i = 0; i < sums.size(); ++i) norms[i % row] += sums[i];
}

void annealed_sgd(bool is_double, bool bf16_grads, uintptr_t param, uintptr_t momentum, uintptr_t ema, uintptr_t half,
                  const std::vector<uintptr_t>& grads, uintptr_t segments, int64_t segment_count, uintptr_t hyper,
                  int64_t groups, uintptr_t grad_scale, uintptr_t found_inf, uintptr_t ema_decay, uintptr_t norms) {
  nb::gil_scoped_release release;
  if (found_inf && *pointer<float>(found_inf) != 0) return;
  Arguments a{{}, grads, pointer<const Hyper>(hyper), 1, 1};
  if (grad_scale) a.inv_scale = 1 / static_cast<double>(*pointer<float>(grad_scale));
  if (ema_decay) a.ema_decay = *pointer<double>(ema_decay);
  const Segment* rows = pointer<const Segment>(segments);
  a.segments.reserve(segment_count);
  std::copy_if(rows, rows + segment_count, std::back_inserter(a.segments),
               [&](const Segment& s) { return grads[s.grad] != 0; });
  if (is_double) {
    Flat<double> flat{pointer<double>(param), pointer<double>(momentum), pointer<double>(ema), pointer<bf16>(half)};
    update_all<double, double>(flat, a, groups, pointer<double>(norms));
    return;
  }
  Flat<float> flat{pointer<float>(param), pointer<float>(momentum), pointer<float>(ema), pointer<bf16>(half)};
  if (bf16_grads)
    update_all<float, bf16>(flat, a, groups, pointer<double>(norms));
  else
    update_all<float, float>(flat, a, groups, pointer<double>(norms));
}

}  // namespace

void bind_annealed_sgd(nb::module_& m) { m.def("annealed_sgd", &annealed_sgd); }

}  // namespace seal_fast
