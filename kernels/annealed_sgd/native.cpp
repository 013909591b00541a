// annealed_sgd_ on the CPU: one pass over the flat buffers, vectorised by the compiler, dealt out to threads in pieces.
#include "../native.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <span>
#include <vector>

namespace nb = nanobind;

namespace seal_fast {
namespace {

// One row of the segment table, and one row of the hyper table: see layout.py and buffers.py.
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

// A stretch of one segment: what a thread takes at a time. Small enough that a thread held up by something else on the
// machine does not hold up the others, large enough that taking one costs nothing.
struct Piece {
  Segment segment;
  int64_t from, to;
};
constexpr int64_t kPieceElements = 131072;

std::vector<Piece> cut(std::span<const Segment> segments) {
  std::vector<Piece> pieces;
  for (const Segment& s : segments)
    for (int64_t from = 0; from < s.length; from += kPieceElements)
      pieces.push_back({s, from, std::min(from + kPieceElements, s.length)});
  return pieces;
}

// Everything here is an address; null where it is not asked for. A gradient's lowest bit is set where it is bfloat16
// (tagged_addresses in layout.py), and it is 0 where there is none.
template <typename T>
void update_all(const Flat<T>& flat, std::span<const Segment> segments, const std::vector<uintptr_t>& grads,
                const Hyper* hyper, double ema_decay, double* norms, double inv_scale) {
  const Update<T, T> full = choose<T, T>(flat.ema, flat.half, norms);
  const Update<T, bf16> half = choose<T, bf16>(flat.ema, flat.half, norms);
  const std::vector<Piece> pieces = cut(segments);
  const int64_t count = pieces.size();
  int64_t elements = 0;
  for (const Segment& s : segments) elements += s.length;
  // Norms are summed up piece by piece and then in the order of the pieces: the same to the last bit every time.
  std::vector<double> sums(norms ? 2 * count : 0, 0.0);

#pragma omp parallel for schedule(dynamic) if (elements >= kSerialElements)
  for (int64_t i = 0; i < count; ++i) {
    const auto& [s, from, to] = pieces[i];
    const uintptr_t grad = grads[s.grad];
    if (grad == 0) continue;
    const Hyper& h = hyper[s.group];
    Coefficients<T> c{static_cast<T>(inv_scale), static_cast<T>(h.momentum), static_cast<T>(h.weight_decay),
                      static_cast<T>(h.sign * h.lr_multiplier * h.lr), static_cast<T>(1 - ema_decay)};
    auto run = [&](auto f, auto* gradient) {
      const int64_t at = s.begin + from;
      f(flat.param + at, flat.momentum + at, gradient + s.offset + from, flat.ema ? flat.ema + at : nullptr,
        flat.half ? flat.half + at : nullptr, to - from, c, norms ? &sums[2 * i] : nullptr);
    };
    if (grad & 1)
      run(half, pointer<const bf16>(grad - 1));
    else
      run(full, pointer<const T>(grad));
  }
  for (size_t i = 0; i < sums.size(); ++i) norms[2 * pieces[i / 2].segment.group + i % 2] += sums[i];
}

void annealed_sgd(bool is_double, int64_t segment_count, const std::vector<uintptr_t>& grads, uintptr_t param,
                  uintptr_t momentum, uintptr_t ema, uintptr_t half, uintptr_t segments, uintptr_t hyper,
                  uintptr_t ema_decay, uintptr_t norms, uintptr_t grad_scale, uintptr_t found_inf) {
  nb::gil_scoped_release release;
  if (found_inf && *pointer<float>(found_inf) != 0) return;
  auto run = [&]<typename T>(T) {
    update_all<T>({pointer<T>(param), pointer<T>(momentum), pointer<T>(ema), pointer<bf16>(half)},
                  {pointer<const Segment>(segments), size_t(segment_count)}, grads, pointer<const Hyper>(hyper),
                  ema_decay ? *pointer<double>(ema_decay) : 1, pointer<double>(norms),
                  grad_scale ? 1 / static_cast<double>(*pointer<float>(grad_scale)) : 1);
  };
  is_double ? run(double{}) : run(float{});
}

}  // namespace

void bind_annealed_sgd(nb::module_& m) { m.def("annealed_sgd", &annealed_sgd); }

}  // namespace seal_fast
