// norm_act on the CPU: train-mode BatchNorm, residual addition and ReLU over a channels-last matrix [rows, channels].
// Forward and backward each take two passes over the rows: sums by channel, then the result. Each pass is one read of
// what it needs; nothing in between is stored.
#include "../native.h"

#include <nanobind/nanobind.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace nb = nanobind;

namespace seal_fast {
namespace {

// Sixteen neighbouring channels. The compiler cuts them into whatever registers the x86-64 level has.
constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Half __attribute__((vector_size(2 * kLanes)));

// Rows that are summed up in float before their sum moves on to double: the rounding errors of a sum grow with its
// length, and 64 terms keep them below those of the data.
constexpr int64_t kBlock = 64;

// Part of the matrix: up to kBlock rows of V vectors of channels. `lanes` counts the channels there are in a vector
// (kLanes where kFull): the others read as zero and are not written.
template <int V, bool kFull>
struct Tile {
  static constexpr int kVectors = V;
  int64_t rows, stride;
  int lanes;

  template <typename To, typename T>
  To read(const T* at) const {
    To value{};
    std::memcpy(&value, at, kFull ? sizeof(To) : lanes * sizeof(T));
    return value;
  }
  Vec load(const float* at) const { return read<Vec>(at); }
  Vec load(const bf16* at) const {
    Bits bits = __builtin_convertvector(read<Half>(at), Bits) << 16;
    return reinterpret_cast<Vec&>(bits);
  }
  void load(Vec (&to)[V], const float* at) const {
    for (int v = 0; v < V; ++v) to[v] = load(at + v * kLanes);
  }
  void store(float* at, Vec value) const { std::memcpy(at, &value, kFull ? sizeof value : lanes * sizeof(float)); }
  // Rounds to nearest even and keeps NaN, as bf16's constructor does.
  void store(bf16* at, Vec value) const {
    Bits bits = reinterpret_cast<Bits&>(value);
    Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    rounded = (bits & 0x7fffffffu) > 0x7f800000u ? Bits{} + 0x7fc0u : rounded;
    Half half = __builtin_convertvector(rounded, Half);
    std::memcpy(at, &half, kFull ? sizeof half : lanes * sizeof(bf16));
  }
  void add(double* to, const Vec (&from)[V]) const {
    for (int v = 0; v < V; ++v)
      for (int i = 0; i < lanes; ++i) to[v * kLanes + i] += static_cast<double>(from[v][i]);
  }
  // f(offset of a vector from the tile's corner, v), row after row.
  template <typename F>
  void each(F f) const {
    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) f(row * stride + v * kLanes, v);
    }
  }
};

// Cuts rows [first, last) into tiles; f(tile, offset of its corner in the matrix, its first channel).
template <typename F>
void tiles(int64_t first, int64_t last, int64_t channels, F f) {
  for (int64_t row = first; row < last; row += kBlock) {
    int64_t rows = std::min(kBlock, last - row), at = row * channels, c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes) f(Tile<4, true>{rows, channels, kLanes}, at + c, c);
    for (; c + kLanes <= channels; c += kLanes) f(Tile<1, true>{rows, channels, kLanes}, at + c, c);
    if (c < channels) f(Tile<1, false>{rows, channels, static_cast<int>(channels - c)}, at + c, c);
  }
}

// Two sums for each channel, taken by a team of threads: each adds up its rows, then its channels over all threads, in
// thread order, so that a run repeats itself to the last bit.
struct Sums {
  Sums(int64_t rows, int64_t channels)
      : rows(rows),
        channels(channels),
        threads(rows * channels < kSerialElements ? 1 : omp_get_max_threads()),
        parts(threads * 2 * channels) {}

  // Runs accumulate(first row, last row, its sums), finish(channel, sum, second sum) and result(first row, last row).
  template <typename Accumulate, typename Finish, typename Result>
  void run(Accumulate accumulate, Finish finish, Result result) {
#pragma omp parallel num_threads(threads)
    {
      int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
      int64_t first = rows * thread / team, last = rows * (thread + 1) / team;
      accumulate(first, last, parts.data() + thread * 2 * channels);
#pragma omp barrier
      for (int64_t c = channels * thread / team; c < channels * (thread + 1) / team; ++c) {
        double sum = 0, second = 0;
        for (int64_t t = 0; t < team; ++t) {
          sum += parts[t * 2 * channels + c];
          second += parts[t * 2 * channels + channels + c];
        }
        finish(c, sum, second);
      }
#pragma omp barrier
      result(first, last);
    }
  }

  int64_t rows, channels;
  int threads;
  std::vector<double> parts;
};

float scale_of(float weight, float var, double eps) { return static_cast<float>(weight / std::sqrt(var + eps)); }

// The value before ReLU. Forward and backward share it, so that they agree about its sign.
inline Vec normalised(Vec x, Vec mean, Vec scale, Vec bias) { return (x - mean) * scale + bias; }

template <typename T>
struct Forward {
  const T *x, *residual;
  const float *weight, *bias;
  T* y;
  float *mean, *var;
  int64_t rows, channels;
  double eps;

  template <bool kResidual, bool kAct>
  void write(const float* scale, int64_t first, int64_t last) const {
    tiles(first, last, channels, [&](auto tile, int64_t at, int64_t c) {
      Vec m[tile.kVectors], s[tile.kVectors], b[tile.kVectors];
      tile.load(m, mean + c);
      tile.load(s, scale + c);
      tile.load(b, bias + c);
      tile.each([&](int64_t i, int v) {
        Vec value = normalised(tile.load(x + at + i), m[v], s[v], b[v]);
        if constexpr (kResidual) value += tile.load(residual + at + i);
        if constexpr (kAct) value = value < 0 ? Vec{} : value;  // NaN stays
        tile.store(y + at + i, value);
      });
    });
  }

  void run(bool act) const {
    // Shifted by the first row, the sums of squares lose nothing where the mean is large beside the deviation.
    std::vector<float> shift(channels), scale(channels);
    for (int64_t c = 0; c < channels; ++c) shift[c] = static_cast<float>(x[c]);
    auto write_rows = residual ? (act ? &Forward::write<true, true> : &Forward::write<true, false>)
                               : (act ? &Forward::write<false, true> : &Forward::write<false, false>);
    Sums(rows, channels)
        .run(
            [&](int64_t first, int64_t last, double* sums) {
              tiles(first, last, channels, [&](auto tile, int64_t at, int64_t c) {
                Vec sum[tile.kVectors]{}, square[tile.kVectors]{}, k[tile.kVectors];
                tile.load(k, shift.data() + c);
                tile.each([&](int64_t i, int v) {
                  Vec d = tile.load(x + at + i) - k[v];
                  sum[v] += d;
                  square[v] += d * d;
                });
                tile.add(sums + c, sum);
                tile.add(sums + channels + c, square);
              });
            },
            [&](int64_t c, double sum, double square) {
              double off = sum / rows;
              mean[c] = static_cast<float>(shift[c] + off);
              var[c] = static_cast<float>(std::max(square / rows - off * off, 0.0));
              scale[c] = scale_of(weight[c], var[c], eps);
            },
            [&](int64_t first, int64_t last) { (this->*write_rows)(scale.data(), first, last); });
  }
};

// Where ReLU let the gradient through: everywhere; where the normalised value, computed again, is positive; or where
// the output is (a residual was added to it).
enum class Mask { kNone, kInput, kOutput };

template <typename T>
struct Backward {
  const T *grad, *x, *y;
  const float *weight, *bias, *mean, *var;
  T *grad_x, *grad_residual;
  float *grad_weight, *grad_bias;
  int64_t rows, channels;
  double eps;

  // With a residual, its gradient (the masked one) is written here and read again by `write`.
  template <Mask kMask>
  void sum(const float* scale, int64_t first, int64_t last, double* sums) const {
    tiles(first, last, channels, [&](auto tile, int64_t at, int64_t c) {
      Vec total[tile.kVectors]{}, product[tile.kVectors]{}, m[tile.kVectors], s[tile.kVectors], b[tile.kVectors];
      tile.load(m, mean + c);
      tile.load(s, scale + c);
      tile.load(b, bias + c);
      tile.each([&](int64_t i, int v) {
        Vec g = tile.load(grad + at + i), value = tile.load(x + at + i);
        if constexpr (kMask == Mask::kInput) g = normalised(value, m[v], s[v], b[v]) <= 0 ? Vec{} : g;
        if constexpr (kMask == Mask::kOutput) {
          g = tile.load(y + at + i) <= 0 ? Vec{} : g;
          tile.store(grad_residual + at + i, g);
        }
        total[v] += g;
        product[v] += g * (value - m[v]);
      });
      tile.add(sums + c, total);
      tile.add(sums + channels + c, product);
    });
  }

  template <bool kMask>
  void write(const T* from, const float* scale, const float* slope, const float* offset, int64_t first,
             int64_t last) const {
    tiles(first, last, channels, [&](auto tile, int64_t at, int64_t c) {
      Vec m[tile.kVectors], s[tile.kVectors], b[tile.kVectors], k[tile.kVectors], o[tile.kVectors];
      tile.load(m, mean + c);
      tile.load(s, scale + c);
      tile.load(b, bias + c);
      tile.load(k, slope + c);
      tile.load(o, offset + c);
      tile.each([&](int64_t i, int v) {
        Vec g = tile.load(from + at + i), value = tile.load(x + at + i);
        if constexpr (kMask) g = normalised(value, m[v], s[v], b[v]) <= 0 ? Vec{} : g;
        tile.store(grad_x + at + i, s[v] * g + (k[v] * (value - m[v]) + o[v]));
      });
    });
  }

  void run(bool act) const {
    std::vector<float> scale(channels), slope(channels), offset(channels);
    for (int64_t c = 0; c < channels; ++c) scale[c] = scale_of(weight[c], var[c], eps);
    auto sum_rows =
        !act ? &Backward::sum<Mask::kNone> : (y ? &Backward::sum<Mask::kOutput> : &Backward::sum<Mask::kInput>);
    auto write_rows = act && !y ? &Backward::write<true> : &Backward::write<false>;
    const T* from = act && y ? grad_residual : grad;
    Sums(rows, channels)
        .run([&](int64_t first, int64_t last, double* sums) { (this->*sum_rows)(scale.data(), first, last, sums); },
             [&](int64_t c, double sum, double product) {
               double inverse = 1 / std::sqrt(var[c] + eps);
               grad_bias[c] = static_cast<float>(sum);
               grad_weight[c] = static_cast<float>(product * inverse);
               slope[c] = static_cast<float>(-scale[c] * inverse * inverse * product / rows);
               offset[c] = static_cast<float>(-scale[c] * sum / rows);
             },
             [&](int64_t first, int64_t last) {
               (this->*write_rows)(from, scale.data(), slope.data(), offset.data(), first, last);
             });
  }
};

template <typename T>
void forward(uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t bias, uintptr_t y, uintptr_t mean,
             uintptr_t var, int64_t rows, int64_t channels, double eps, bool act) {
  nb::gil_scoped_release release;
  Forward<T>{pointer<T>(x),
             pointer<T>(residual),
             pointer<float>(weight),
             pointer<float>(bias),
             pointer<T>(y),
             pointer<float>(mean),
             pointer<float>(var),
             rows,
             channels,
             eps}
      .run(act);
}

template <typename T>
void backward(uintptr_t grad, uintptr_t x, uintptr_t y, uintptr_t weight, uintptr_t bias, uintptr_t mean, uintptr_t var,
              uintptr_t grad_x, uintptr_t grad_residual, uintptr_t grad_weight, uintptr_t grad_bias, int64_t rows,
              int64_t channels, double eps, bool act) {
  nb::gil_scoped_release release;
  Backward<T>{pointer<T>(grad),
              pointer<T>(x),
              pointer<T>(y),
              pointer<float>(weight),
              pointer<float>(bias),
              pointer<float>(mean),
              pointer<float>(var),
              pointer<T>(grad_x),
              pointer<T>(grad_residual),
              pointer<float>(grad_weight),
              pointer<float>(grad_bias),
              rows,
              channels,
              eps}
      .run(act);
}

}  // namespace

void bind_norm_act(nb::module_& m) {
  m.def("norm_act_float32", &forward<float>);
  m.def("norm_act_bfloat16", &forward<bf16>);
  m.def("norm_act_backward_float32", &backward<float>);
  m.def("norm_act_backward_bfloat16", &backward<bf16>);
}

}  // namespace seal_fast
