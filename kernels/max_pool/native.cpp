// max_pool on the CPU, over channels-last images: forward keeps which tap of its window each output came from, in a byte;
// backward asks of every input pixel which windows took it, so that nothing is cleared first and no two threads meet.
#include "../native.h"

#include <nanobind/nanobind.h>
#include <omp.h>

#include <algorithm>
#include <limits>

namespace nb = nanobind;

namespace seal_fast {
namespace {

// Channels in hand at a time: what fits in registers, whatever the vectors' width.
constexpr int64_t kChannels = 64;

struct Pool {
  int64_t images, channels, height, width, rows, columns, kernel, stride, padding;

  int threads() const { return images * channels * height * width < kSerialElements ? 1 : omp_get_max_threads(); }

  template <typename T>
  void forward(const T* x, T* y, uint8_t* taps) const {
#pragma omp parallel for num_threads(threads())
    for (int64_t row = 0; row < images * rows; ++row) {
      int64_t top = row % rows * stride - padding;
      const T* image = x + row / rows * height * width * channels;
      for (int64_t column = 0; column < columns; ++column) {
        int64_t left = column * stride - padding, to = (row * columns + column) * channels;
        for (int64_t c = 0; c < channels; c += kChannels) {
          int64_t lanes = std::min(kChannels, channels - c);
          if (lanes == kChannels)
            window<kChannels>(image + c, top, left, y + to + c, taps + to + c, kChannels);
          else
            window<0>(image + c, top, left, y + to + c, taps + to + c, lanes);
        }
      }
    }
  }

  // kLanes is the number of channels where the compiler may know it, else 0. As in torch, the first of equals wins, and
  // NaN wins over all.
  template <int64_t kLanes, typename T>
  void window(const T* image, int64_t top, int64_t left, T* y, uint8_t* taps, int64_t lanes) const {
    const int64_t n = kLanes ? kLanes : lanes;
    int64_t first_y = std::max<int64_t>(0, -top), first_x = std::max<int64_t>(0, -left);
    int64_t last_y = std::min(kernel, height - top), last_x = std::min(kernel, width - left);
    float best[kChannels];
    int32_t tap[kChannels];
    std::fill_n(best, kChannels, -std::numeric_limits<float>::infinity());
    std::fill_n(tap, kChannels, static_cast<int32_t>(first_y * kernel + first_x));
    for (int64_t ky = first_y; ky < last_y; ++ky)
      for (int64_t kx = first_x; kx < last_x; ++kx) {
        const T* from = image + ((top + ky) * width + left + kx) * channels;
        int32_t here = static_cast<int32_t>(ky * kernel + kx);
        for (int64_t i = 0; i < n; ++i) {
          float value = static_cast<float>(from[i]);
          bool take = (value > best[i]) | (value != value);
          best[i] = take ? value : best[i];
          tap[i] = take ? here : tap[i];
        }
      }
    for (int64_t i = 0; i < n; ++i) y[i] = T(best[i]);
    for (int64_t i = 0; i < n; ++i) taps[i] = static_cast<uint8_t>(tap[i]);
  }

  template <typename T>
  void backward(const T* grad, const uint8_t* taps, T* grad_x) const {
#pragma omp parallel for num_threads(threads())
    for (int64_t line = 0; line < images * height; ++line) {
      int64_t y = line % height + padding, from = line / height * rows * columns * channels;
      for (int64_t x = padding; x < width + padding; ++x) {
        T* to = grad_x + (line * width + x - padding) * channels;
        for (int64_t c = 0; c < channels; c += kChannels) {
          int64_t lanes = std::min(kChannels, channels - c);
          if (lanes == kChannels)
            pixel<kChannels>(grad + from + c, taps + from + c, y, x, to + c, kChannels);
          else
            pixel<0>(grad + from + c, taps + from + c, y, x, to + c, lanes);
        }
      }
    }
  }

  // (y, x) counts from the corner of the padding.
  template <int64_t kLanes, typename T>
  void pixel(const T* grad, const uint8_t* taps, int64_t y, int64_t x, T* grad_x, int64_t lanes) const {
    const int64_t n = kLanes ? kLanes : lanes;
    float sum[kChannels]{};
    for (int64_t row = first(y); row <= std::min(y / stride, rows - 1); ++row)
      for (int64_t column = first(x); column <= std::min(x / stride, columns - 1); ++column) {
        int64_t at = (row * columns + column) * channels;
        uint8_t here = static_cast<uint8_t>((y - row * stride) * kernel + x - column * stride);
        for (int64_t i = 0; i < n; ++i) sum[i] += taps[at + i] == here ? static_cast<float>(grad[at + i]) : 0.0f;
      }
    for (int64_t i = 0; i < n; ++i) grad_x[i] = T(sum[i]);
  }

  // The first window that reaches a row or column.
  int64_t first(int64_t at) const { return at < kernel ? 0 : (at - kernel) / stride + 1; }
};

template <typename T>
void forward(uintptr_t x, uintptr_t y, uintptr_t taps, int64_t images, int64_t channels, int64_t height, int64_t width,
             int64_t rows, int64_t columns, int64_t kernel, int64_t stride, int64_t padding) {
  nb::gil_scoped_release release;
  Pool{images, channels, height, width, rows, columns, kernel, stride, padding}.forward(pointer<T>(x), pointer<T>(y),
                                                                                        pointer<uint8_t>(taps));
}

template <typename T>
void backward(uintptr_t grad, uintptr_t taps, uintptr_t grad_x, int64_t images, int64_t channels, int64_t height,
              int64_t width, int64_t rows, int64_t columns, int64_t kernel, int64_t stride, int64_t padding) {
  nb::gil_scoped_release release;
  Pool{images, channels, height, width, rows, columns, kernel, stride, padding}.backward(
      pointer<T>(grad), pointer<uint8_t>(taps), pointer<T>(grad_x));
}

}  // namespace

void bind_max_pool(nb::module_& m) {
  m.def("max_pool_float32", &forward<float>);
  m.def("max_pool_bfloat16", &forward<bf16>);
  m.def("max_pool_backward_float32", &backward<float>);
  m.def("max_pool_backward_bfloat16", &backward<bf16>);
}

}  // namespace seal_fast
