// gram_schmidt on the CPU: rows are read in their own type and converted in registers. What it costs is reading them,
// so a chunk of the vector stays in the cache while the rows pass by, several at a time.
#include "../native.h"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <vector>

namespace nb = nanobind;

namespace seal_fast {
namespace {

constexpr int kLanes = 8;
typedef double Wide __attribute__((vector_size(8 * kLanes)));

// Entries of the vector in hand at a time. Sums are made chunk by chunk, so threads do not change them.
constexpr int64_t kChunk = 4096;
constexpr int64_t kRows = 4;  // together: enough to hide the latency of a sum, few enough for 16 registers

template <typename T>
inline Wide wide(const T* at) {
  typedef T Own __attribute__((vector_size(sizeof(T) * kLanes)));
  Own value;
  std::memcpy(&value, at, sizeof value);
  return __builtin_convertvector(value, Wide);
}

inline double total(Wide value) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += value[i];
  return sum;
}

// Dot products of `kCount` rows, `stride` entries apart, with the vector.
template <int kCount, typename T>
void dots_of(const T* rows, int64_t stride, const double* vector, int64_t n, double* to) {
  Wide sums[kCount]{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Wide value = wide(vector + i);
    for (int r = 0; r < kCount; ++r) sums[r] += wide(rows + r * stride + i) * value;
  }
  for (int r = 0; r < kCount; ++r) {
    double sum = total(sums[r]);
    for (int64_t j = i; j < n; ++j) sum += static_cast<double>(rows[r * stride + j]) * vector[j];
    to[r] = sum;
  }
}

template <int kCount, typename T>
void subtract_of(const T* rows, int64_t stride, const double* coefficients, double* vector, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Wide value = wide(vector + i);
    for (int r = 0; r < kCount; ++r) value -= coefficients[r] * wide(rows + r * stride + i);
    std::memcpy(vector + i, &value, sizeof value);
  }
  for (; i < n; ++i)
    for (int r = 0; r < kCount; ++r) vector[i] -= coefficients[r] * static_cast<double>(rows[r * stride + i]);
}

template <typename T>
void dots(uintptr_t rows_at, uintptr_t vector_at, uintptr_t found_at, int64_t count, int64_t n) {
  nb::gil_scoped_release release;
  const T* rows = pointer<T>(rows_at);
  const double* vector = pointer<double>(vector_at);
  double* found = pointer<double>(found_at);
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> parts(chunks * count);
#pragma omp parallel for schedule(static) if (count * n >= kSerialElements)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t start = chunk * kChunk, size = std::min(kChunk, n - start);
    double* to = parts.data() + chunk * count;
    int64_t r = 0;
    for (; r + kRows <= count; r += kRows) dots_of<kRows>(rows + r * n + start, n, vector + start, size, to + r);
    for (; r < count; ++r) dots_of<1>(rows + r * n + start, n, vector + start, size, to + r);
  }
  std::fill_n(found, count, 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t r = 0; r < count; ++r) found[r] += parts[chunk * count + r];
}

template <typename T>
void subtract(uintptr_t vector_at, uintptr_t rows_at, uintptr_t coefficients_at, int64_t count, int64_t n) {
  nb::gil_scoped_release release;
  double* vector = pointer<double>(vector_at);
  const T* rows = pointer<T>(rows_at);
  const double* coefficients = pointer<double>(coefficients_at);
  const int64_t chunks = (n + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(static) if (count * n >= kSerialElements)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t start = chunk * kChunk, size = std::min(kChunk, n - start);
    int64_t r = 0;
    for (; r + kRows <= count; r += kRows)
      subtract_of<kRows>(rows + r * n + start, n, coefficients + r, vector + start, size);
    for (; r < count; ++r) subtract_of<1>(rows + r * n + start, n, coefficients + r, vector + start, size);
  }
}

}  // namespace

void bind_gram_schmidt(nb::module_& m) {
  m.def("gram_schmidt_dots_float32", &dots<float>);
  m.def("gram_schmidt_dots_float64", &dots<double>);
  m.def("gram_schmidt_subtract_float32", &subtract<float>);
  m.def("gram_schmidt_subtract_float64", &subtract<double>);
}

}  // namespace seal_fast
