// annealed_sgd_ on the CPU: one pass over the flat buffers, vectorised by the compiler, dealt out to threads in pieces.
#include "../native.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "gradients.h"

namespace nb = nanobind;

namespace seal_fast {
namespace {

// One row of the segment table, and one row of the hyper table: see layout.py and HYPER in __init__.py.
struct Segment {
  int64_t begin, length, group, grad, offset;
};
struct Hyper {
  double lr, momentum, weight_decay, sign, lr_multiplier;
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

// Elements between two requests for what lies ahead, and how far ahead. The processor's own prefetching stops at the
// end of a page, and there are several streams to follow.
constexpr int64_t kStride = 64, kAhead = 640;

template <typename T>
inline void fetch(const T* at) {
  for (size_t byte = 0; byte < kStride * sizeof(T); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(at + kAhead) + byte);
}

// The update rule for n neighbouring elements of one group. What is not asked for costs nothing: it is not compiled.
template <typename T, typename G, bool kEma, bool kHalf, bool kNorms>
void update(T* __restrict p, T* __restrict buf, const G* __restrict grad, T* __restrict ema, bf16* __restrict half,
            int64_t n, const Coefficients<T> c, double* norms) {
  double grad_square = 0, update_square = 0;
  for (int64_t start = 0; start < n; start += kStride) {
    const int64_t stop = std::min(n, start + kStride);
    fetch(p + start);
    fetch(buf + start);
    fetch(grad + start);
    if constexpr (kEma) fetch(ema + start);
    if constexpr (kHalf) fetch(half + start);
#pragma omp simd reduction(+ : grad_square, update_square)
    for (int64_t i = start; i < stop; ++i) {
      T g = static_cast<T>(grad[i]) * c.inv_scale;
      T old_p = p[i];
      T b = c.momentum * buf[i] + (g + c.weight_decay * old_p);
      T delta = c.step * b;
      // A frozen parameter keeps its bits, even where the buffer holds an infinity.
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

struct Scalars {
  const Hyper* hyper;
  double inv_scale, ema_decay;
};

// A stretch of one segment: what a thread takes at a time. Small enough that a thread held up by something else on the
// machine does not hold up the others, large enough that taking one costs nothing.
struct Piece {
  Segment segment;
  int64_t from, to;
};
constexpr int64_t kPieceElements = 131072;

// Elements whose parts are added up before they are used, while they are in the first cache.
constexpr int64_t kSumElements = 2048;

template <typename T, typename G, bool kFirst>
void add(T* __restrict sum, const G* __restrict part, int64_t n) {
  for (int64_t start = 0; start < n; start += kStride) {
    const int64_t stop = std::min(n, start + kStride);
    fetch(part + start);
#pragma omp simd
    for (int64_t i = start; i < stop; ++i) sum[i] = kFirst ? static_cast<T>(part[i]) : sum[i] + static_cast<T>(part[i]);
  }
}

// The parts' sum, in their order: the same to the last bit every time.
template <typename T>
void add_up(T* sum, const Gradients& grads, int64_t index, int64_t begin, int64_t n) {
  for (int64_t part = 0; part < grads.parts; ++part) {
    const uintptr_t grad = grads.at(index, part);
    auto run = [&](auto* from) {
      using G = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      part == 0 ? add<T, G, true>(sum, from + begin, n) : add<T, G, false>(sum, from + begin, n);
    };
    if (grad & 1)
      run(pointer<const bf16>(grad - 1));
    else
      run(pointer<const T>(grad));
  }
}

// The buffers that an update works on, and how it is dealt out. All addresses; null where something is not asked for.
struct Plan {
  bool is_double;
  uintptr_t param, momentum, ema, half;
  const Hyper* hyper;
  const double* ema_decay;
  double* norms;
  std::vector<Piece> pieces;
  int64_t elements;
};

std::vector<Piece> cut(std::span<const Segment> segments) {
  std::vector<Piece> pieces;
  for (const Segment& s : segments)
    for (int64_t from = 0; from < s.length; from += kPieceElements)
      pieces.push_back({s, from, std::min(from + kPieceElements, s.length)});
  return pieces;
}

template <typename T>
void update_all(const Plan& plan, const Gradients& grads, const Scalars& scalars) {
  const Flat<T> flat{pointer<T>(plan.param), pointer<T>(plan.momentum), pointer<T>(plan.ema), pointer<bf16>(plan.half)};
  double* norms = plan.norms;
  Update<T, T> full = choose<T, T>(flat.ema, flat.half, norms);
  Update<T, bf16> half = choose<T, bf16>(flat.ema, flat.half, norms);
  const int64_t count = plan.pieces.size();
  // Norms are summed up piece by piece and then in the order of the pieces: the same to the last bit every time.
  std::vector<double> sums(norms ? 2 * count : 0, 0.0);

#pragma omp parallel for schedule(dynamic) if (plan.elements >= kSerialElements)
  for (int64_t i = 0; i < count; ++i) {
    const auto& [s, from, to] = plan.pieces[i];
    const uintptr_t grad = grads.at(s.grad);
    if (grad == 0) continue;
    const Hyper& h = scalars.hyper[s.group];
    Coefficients<T> c{static_cast<T>(scalars.inv_scale), static_cast<T>(h.momentum), static_cast<T>(h.weight_decay),
                      static_cast<T>(h.sign * h.lr_multiplier * h.lr), static_cast<T>(1 - scalars.ema_decay)};
    auto run = [&](auto f, auto* gradient, int64_t begin, int64_t n) {
      int64_t at = s.begin + begin;
      f(flat.param + at, flat.momentum + at, gradient, flat.ema ? flat.ema + at : nullptr,
        flat.half ? flat.half + at : nullptr, n, c, norms ? &sums[2 * i] : nullptr);
    };
    if (grads.parts > 1) {
      alignas(64) T sum[kSumElements];
      for (int64_t begin = from; begin < to; begin += kSumElements) {
        const int64_t n = std::min(kSumElements, to - begin);
        add_up(sum, grads, s.grad, s.offset + begin, n);
        run(full, sum, begin, n);
      }
    } else if (grad & 1) {
      run(half, pointer<const bf16>(grad - 1) + s.offset + from, from, to - from);
    } else {
      run(full, pointer<const T>(grad) + s.offset + from, from, to - from);
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) norms[2 * plan.pieces[i / 2].segment.group + i % 2] += sums[i];
}

nb::capsule annealed_sgd_plan(bool is_double, uintptr_t param, uintptr_t momentum, uintptr_t ema, uintptr_t half,
                              uintptr_t segments, int64_t segment_count, uintptr_t hyper, uintptr_t ema_decay,
                              uintptr_t norms) {
  auto plan = std::make_unique<Plan>(Plan{is_double, param, momentum, ema, half, pointer<const Hyper>(hyper),
                                          pointer<const double>(ema_decay), pointer<double>(norms),
                                          cut({pointer<const Segment>(segments), size_t(segment_count)}), 0});
  for (const Piece& piece : plan->pieces) plan->elements += piece.to - piece.from;
  return nb::capsule(plan.release(), [](void* p) noexcept { delete static_cast<Plan*>(p); });
}

void run(nb::capsule plan, const Gradients& grads, uintptr_t grad_scale, uintptr_t found_inf) {
  const Plan& known = *static_cast<const Plan*>(plan.data());
  nb::gil_scoped_release release;
  if (found_inf && *pointer<float>(found_inf) != 0) return;
  Scalars scalars{known.hyper, 1, known.ema_decay ? *known.ema_decay : 1};
  if (grad_scale) scalars.inv_scale = 1 / static_cast<double>(*pointer<float>(grad_scale));
  known.is_double ? update_all<double>(known, grads, scalars) : update_all<float>(known, grads, scalars);
}

void annealed_sgd(nb::capsule plan, std::vector<uintptr_t> addresses, int64_t parts, uintptr_t grad_scale,
                  uintptr_t found_inf) {
  run(plan, {std::move(addresses), parts}, grad_scale, found_inf);
}

// The same for gradients that are still to be looked at, in one call: what Python looks up after a backward pass is in
// no cache. False, and nothing is done, where anything is out of the ordinary. announce: called before anything is
// written; grad_scale, found_inf: tensors or None.
bool annealed_sgd_at_sight(nb::capsule plan, nb::capsule places, nb::list params, nb::list copies,
                           nb::callable announce, nb::handle grad_scale, nb::handle found_inf) {
  const Places& known = *static_cast<const Places*>(places.data());
  std::vector<nb::object> held;  // the gradients must outlive the update
  Gradients grads{{}, 1};
  uintptr_t scale = 0, infinite = 0;
  if (!known.table.number(grad_scale, scale) || !known.table.number(found_inf, infinite)) return false;
  if (!known.look(params, copies, grads.addresses, held)) return false;
  announce();
  run(plan, grads, scale, infinite);
  return true;
}

}  // namespace

void bind_annealed_sgd(nb::module_& m) {
  m.def("annealed_sgd_plan", &annealed_sgd_plan);
  m.def("annealed_sgd", &annealed_sgd);
  m.def("annealed_sgd_at_sight", &annealed_sgd_at_sight, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg().none(), nb::arg().none());
}

}  // namespace seal_fast
