// norm_act on the CPU: train-mode BatchNorm, residual addition and ReLU over a channels-last matrix [rows, channels].
// Forward and backward each take two passes over the rows: sums by channel, then the result. Each pass is one read of
// what it needs; nothing in between is stored.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tiles.h"

namespace nb = nanobind;

namespace seal_fast {
namespace {

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

  // Sums of a tile's values and of their squares, less `shift`, as double. Squares are taken about the tile's own mean
  // (Chan, Golub and LeVeque, 1983): float terms about any other centre would cancel where that is an outlier.
  void sum(const float* shift, int64_t first, int64_t last, double* sums) const {
    tiles(first, last, channels, [&](auto tile, int64_t at, int64_t c) {
      Vec mean[tile.kVectors]{}, rest[tile.kVectors]{}, square[tile.kVectors]{};
      tile.each([&](int64_t i, int v) { mean[v] += tile.load(x + at + i); });
      for (Vec& m : mean) m /= static_cast<float>(tile.rows);
      tile.each([&](int64_t i, int v) {
        Vec d = tile.load(x + at + i) - mean[v];
        rest[v] += d;
        square[v] += d * d;
      });
      const double n = static_cast<double>(tile.rows);
      for (int v = 0; v < tile.kVectors; ++v)
        for (int i = 0; i < tile.lanes; ++i) {
          const int64_t channel = c + v * kLanes + i;
          const double r = rest[v][i], off = static_cast<double>(mean[v][i]) - shift[channel];
          sums[channel] += n * off + r;
          sums[channels + channel] += n * off * off + 2 * off * r + square[v][i];
        }
    });
  }

  void run(bool act) const {
    std::vector<float> shift(channels), scale(channels);
    for (int64_t c = 0; c < channels; ++c) shift[c] = static_cast<float>(x[c]);
    auto write_rows = residual ? (act ? &Forward::write<true, true> : &Forward::write<true, false>)
                               : (act ? &Forward::write<false, true> : &Forward::write<false, false>);
    Sums(rows, channels)
        .run([&](int64_t first, int64_t last, double* sums) { sum(shift.data(), first, last, sums); },
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
void forward(Address x, Address residual, Address weight, Address bias, Address y, Address mean, Address var,
             int64_t rows, int64_t channels, double eps, bool act) {
  nb::gil_scoped_release release;
  Forward<T>{x, residual, weight, bias, y, mean, var, rows, channels, eps}.run(act);
}

template <typename T>
void backward(Address grad, Address x, Address y, Address weight, Address bias, Address mean, Address var,
              Address grad_x, Address grad_residual, Address grad_weight, Address grad_bias, int64_t rows,
              int64_t channels, double eps, bool act) {
  nb::gil_scoped_release release;
  Backward<T>{grad, x, y, weight, bias, mean, var, grad_x, grad_residual, grad_weight, grad_bias, rows, channels, eps}
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
