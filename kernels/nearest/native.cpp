// nearest on the CPU. `prepare` rounds the filter's operands in one pass; `update` takes each query's row of products
// twice: for the bound that k rows are known to stay below, then for those that may lie below it, whose distances it
// computes in double. A row of products stays in the L2 cache between the two.
#include "../native.h"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace nb = nanobind;

namespace seal_fast {
namespace {

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef float HalfVec __attribute__((vector_size(4 * kLanes / 2)));
typedef double Wide __attribute__((vector_size(8 * kLanes / 2)));

inline double total(Wide value) {
  double sum = 0;
  for (int i = 0; i < kLanes / 2; ++i) sum += value[i];
  return sum;
}

inline Vec vec(const float* at) {
  Vec value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

inline Wide wide(const float* at) {
  HalfVec value;
  std::memcpy(&value, at, sizeof value);
  return __builtin_convertvector(value, Wide);
}

template <typename T>
double prepare(uintptr_t x_at, uintptr_t centre_at, uintptr_t small_at, uintptr_t norms_at, int64_t rows,
               int64_t columns, double scale) {
  nb::gil_scoped_release release;
  const float *x = pointer<float>(x_at), *centre = pointer<float>(centre_at);
  T* small = pointer<T>(small_at);
  double* norms = pointer<double>(norms_at);
  const float factor = static_cast<float>(scale);
  double worst = 0;
#pragma omp parallel for schedule(static) reduction(max : worst) if (rows * columns >= kSerialElements)
  for (int64_t i = 0; i < rows; ++i) {
    double square = 0, lost = 0;
    for (int64_t start = 0; start < columns; start += 64) {
      int64_t count = std::min<int64_t>(64, columns - start);
      const float *from = x + i * columns + start, *middle = centre + start;
      T* to = small + i * columns + start;
      float shifted[64], gone[64];
      for (int64_t c = 0; c < count; ++c) {
        shifted[c] = (from[c] - middle[c]) * factor;
        to[c] = T(shifted[c]);
        gone[c] = shifted[c] - static_cast<float>(to[c]);
      }
      for (int64_t c = count; c < 64; ++c) shifted[c] = gone[c] = 0;
      Wide s{}, g{};
      for (int c = 0; c < 64; c += kLanes / 2) {
        Wide a = wide(shifted + c), b = wide(gone + c);
        s += a * a;
        g += b * b;
      }
      square += total(s);
      lost += total(g);
    }
    norms[i] = std::sqrt(square);
    worst = std::max(worst, std::sqrt(lost / std::max(square, 1e-300)));
  }
  return worst;
}

double squared_distance(const float* a, const float* b, int64_t columns) {
  Wide sums[4]{};
  int64_t c = 0;
  for (; c + 2 * kLanes <= columns; c += 2 * kLanes)
    for (int v = 0; v < 4; ++v) {
      Wide d = wide(a + c + v * kLanes / 2) - wide(b + c + v * kLanes / 2);
      sums[v] += d * d;
    }
  double sum = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; c < columns; ++c) {
    double d = static_cast<double>(a[c]) - static_cast<double>(b[c]);
    sum += d * d;
  }
  return sum;
}

// The k smallest values that were offered, as a heap with the largest of them on top.
class Smallest {
 public:
  explicit Smallest(int64_t k) : k_(k) { heap_.reserve(k); }
  float top() const { return static_cast<int64_t>(heap_.size()) < k_ ? kInfinity : heap_.front(); }
  void offer(float value) {
    if (static_cast<int64_t>(heap_.size()) < k_) {
      heap_.push_back(value);
      if (static_cast<int64_t>(heap_.size()) == k_) std::make_heap(heap_.begin(), heap_.end());
      return;
    }
    // Down from the top: one walk instead of a pop and a push.
    size_t at = 0, size = heap_.size();
    while (true) {
      size_t child = 2 * at + 1;
      if (child >= size) break;
      if (child + 1 < size && heap_[child + 1] > heap_[child]) ++child;
      if (heap_[child] <= value) break;
      heap_[at] = heap_[child];
      at = child;
    }
    heap_[at] = value;
  }
  void clear() { heap_.clear(); }
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

 private:
  int64_t k_;
  std::vector<float> heap_;
};

template <typename T>
struct Update {
  double* distances;
  int64_t* rows;
  const float* queries;
  const double* query_norms;
  const float* block;
  const double* block_norms;
  const T* products;
  const int64_t* exclude;
  int64_t count, block_rows, columns, k, first;
  double scale, error, rounding, slack;

  void run() const {
    // Padded to whole strips with rows that are infinitely far.
    const int64_t padded = (block_rows + kStrip - 1) / kStrip * kStrip;
    std::vector<float> low(padded, Smallest::kInfinity), high(padded, Smallest::kInfinity), norm(padded, 0.f);
    for (int64_t j = 0; j < block_rows; ++j) {
      double square = block_norms[j] * block_norms[j];
      low[j] = static_cast<float>(square * (1 - slack));
      high[j] = static_cast<float>(square * (1 + slack));
      norm[j] = static_cast<float>(block_norms[j]);
    }
#pragma omp parallel if (count * block_rows >= kSerialElements)
    {
      Row row{low.data(), high.data(), norm.data(), std::vector<float>(padded), std::vector<float>(padded), padded};
      Smallest smallest(k);
#pragma omp for schedule(dynamic, 8)
      for (int64_t i = 0; i < count; ++i) take(i, row, smallest);
    }
  }

  // Columns that are looked at together; one comparison tells whether any of them matters.
  static constexpr int64_t kStrip = 4 * kLanes;

  struct Row {
    const float *low, *high, *norm;
    std::vector<float> product, bound;
    int64_t columns;
  };

  // Bounds of a strip into row.bound, from above or from below; returns the smallest.
  template <bool kUpper>
  static float bounds(Row& row, int64_t j, float round, float own_error) {
    Vec least = Vec{} + Smallest::kInfinity;
    for (int64_t c = j; c < j + kStrip; c += kLanes) {
      Vec p = vec(row.product.data() + c), n = vec(row.norm + c), s = vec((kUpper ? row.high : row.low) + c);
      Vec margin = round * (p < 0 ? -p : p) + own_error * n;
      Vec bound = kUpper ? s - 2 * (p - margin) : s - 2 * (p + margin);
      std::memcpy(row.bound.data() + c, &bound, sizeof bound);
      least = bound < least ? bound : least;
    }
    float smallest = least[0];
    for (int l = 1; l < kLanes; ++l) smallest = least[l] < smallest ? least[l] : smallest;
    return smallest;
  }

  void take(int64_t i, Row& row, Smallest& smallest) const {
    for (int64_t j = 0; j < block_rows; ++j) row.product[j] = static_cast<float>(products[i * block_rows + j]);
    const int64_t left_out = exclude ? exclude[i] - first : -1;
    const double own = query_norms[i] * query_norms[i];
    const float own_error = static_cast<float>(error * query_norms[i]), round = static_cast<float>(rounding);
    double* near = distances + i * k;
    int64_t* names = rows + i * k;
    auto limit_of = [&](double distance) {
      double known = distance * scale * scale;
      return static_cast<float>(known - own + slack * (known + own) + 1e-30);
    };
    float limit = limit_of(near[k - 1]);

    // The k-th smallest upper bound helps where the block may change much of what is known.
    if (block_rows > first || !std::isfinite(near[k - 1])) {
      smallest.clear();
      for (int64_t j = 0; j < row.columns; j += kStrip) {
        float top = std::min(smallest.top(), limit);
        if (!(bounds<true>(row, j, round, own_error) < top)) continue;
        for (int64_t c = j; c < std::min(j + kStrip, block_rows); ++c)
          if (row.bound[c] < std::min(smallest.top(), limit) && c != left_out) smallest.offer(row.bound[c]);
      }
      limit = std::min(limit, static_cast<float>(smallest.top() + slack * own + 1e-30));
    }

    for (int64_t j = 0; j < row.columns; j += kStrip) {
      if (!(bounds<false>(row, j, round, own_error) <= limit)) continue;
      for (int64_t c = j; c < std::min(j + kStrip, block_rows); ++c) {
        if (!(row.bound[c] <= limit) || c == left_out) continue;
        double distance = squared_distance(queries + i * columns, block + c * columns, columns);
        if (!(distance < near[k - 1])) continue;  // of equals, the row that came first stays
        int64_t at = k - 1;
        for (; at > 0 && near[at - 1] > distance; --at) {
          near[at] = near[at - 1];
          names[at] = names[at - 1];
        }
        near[at] = distance;
        names[at] = first + c;
        limit = std::min(limit, limit_of(near[k - 1]));
      }
    }
  }
};

template <typename T>
void update(uintptr_t distances, uintptr_t rows, uintptr_t queries, uintptr_t query_norms, uintptr_t block,
            uintptr_t block_norms, uintptr_t products, uintptr_t exclude, int64_t count, int64_t block_rows,
            int64_t columns, int64_t k, int64_t first, double scale, double error, double rounding, double slack) {
  nb::gil_scoped_release release;
  Update<T>{pointer<double>(distances),
            pointer<int64_t>(rows),
            pointer<float>(queries),
            pointer<double>(query_norms),
            pointer<float>(block),
            pointer<double>(block_norms),
            pointer<T>(products),
            pointer<int64_t>(exclude),
            count,
            block_rows,
            columns,
            k,
            first,
            scale,
            error,
            rounding,
            slack}
      .run();
}

}  // namespace

void bind_nearest(nb::module_& m) {
  m.def("nearest_prepare_float32", &prepare<float>);
  m.def("nearest_prepare_bfloat16", &prepare<bf16>);
  m.def("nearest_update_float32", &update<float>);
  m.def("nearest_update_bfloat16", &update<bf16>);
}

}  // namespace seal_fast
