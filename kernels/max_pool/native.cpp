// max_pool on the CPU, over channels-last images: forward keeps in a byte which tap of its window each output came
// from; backward sums up one line of the input at a time from the rows of windows that reach it, so that no two threads
// meet.
#include "../native.h"

#include <nanobind/nanobind.h>
#include <omp.h>

#include <algorithm>
#include <limits>
#include <vector>

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
#pragma omp parallel num_threads(threads())
    {
      std::vector<float> sums(width * channels);
#pragma omp for
      for (int64_t line = 0; line < images * height; ++line) {
        int64_t y = line % height + padding;  // from the border of the padding
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t row = first(y); row <= std::min(y / stride, rows - 1); ++row) {
          int64_t from = (line / height * rows + row) * columns * channels;
          scatter(grad + from, taps + from, static_cast<int32_t>((y - row * stride) * kernel), sums.data());
        }
        T* to = grad_x + line * width * channels;
        for (int64_t i = 0; i < width * channels; ++i) to[i] = T(sums[i]);
      }
    }
  }

  // A row of windows, of which `tap` and the kernel - 1 after it lie on the line that is being summed up.
  template <typename T>
  void scatter(const T* grad, const uint8_t* taps, int32_t tap, float* sums) const {
    for (int64_t column = 0; column < columns; ++column, grad += channels, taps += channels) {
      int64_t left = column * stride - padding;
      for (int64_t kx = std::max<int64_t>(0, -left); kx < std::min(kernel, width - left); ++kx) {
        int32_t here = tap + static_cast<int32_t>(kx);
        float* __restrict to = sums + (left + kx) * channels;
        for (int64_t i = 0; i < channels; ++i) {
          float value = static_cast<float>(grad[i]);
          to[i] += static_cast<int32_t>(taps[i]) == here ? value : 0.0f;
        }
      }
    }
  }

  // The first window that reaches a row or column.
  int64_t first(int64_t at) const { return at < kernel ? 0 : (at - kernel) / stride + 1; }
};

template <typename T>
void forward(Address x, Address y, Address taps, int64_t images, int64_t channels, int64_t height, int64_t width,
             int64_t rows, int64_t columns, int64_t kernel, int64_t stride, int64_t padding) {
  nb::gil_scoped_release release;
  Pool{images, channels, height, width, rows, columns, kernel, stride, padding}.forward<T>(x, y, taps);
}

template <typename T>
void backward(Address grad, Address taps, Address grad_x, int64_t images, int64_t channels, int64_t height,
              int64_t width, int64_t rows, int64_t columns, int64_t kernel, int64_t stride, int64_t padding) {
  nb::gil_scoped_release release;
  Pool{images, channels, height, width, rows, columns, kernel, stride, padding}.backward<T>(grad, taps, grad_x);
}

}  // namespace

void bind_max_pool(nb::module_& m) {
  m.def("max_pool_float32", &forward<float>);
  m.def("max_pool_bfloat16", &forward<bf16>);
  m.def("max_pool_backward_float32", &backward<float>);
  m.def("max_pool_backward_bfloat16", &backward<bf16>);
}

}  // namespace seal_fast
