// nearest on the CPU. `prepare` rounds the filter's operands in one pass; `update` passes once over each query's row of
// products and keeps the few columns that may be near enough, tightens what "near enough" is by the upper bounds of
// these, and computes in double the distances that are still in doubt.
#include "../native.h"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace nb = nanobind;

namespace seal_fast {
namespace {

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
double prepare(Address x_at, Address centre_at, Address small_at, Address norms_at, int64_t rows, int64_t columns,
               double scale) {
  nb::gil_scoped_release release;
  const float *x = x_at, *centre = centre_at;
  T* small = small_at;
  double* norms = norms_at;
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

// Rows lie anywhere in memory: the next one is asked for while this one is computed.
inline void fetch(const float* row, int64_t columns) {
  for (int64_t c = 0; c < std::min<int64_t>(columns, 1024); c += kLanes) __builtin_prefetch(row + c);
}

inline Vec as_float(const float* at) { return vec(at); }

inline Vec as_float(const bf16* at) {
  Half half;
  std::memcpy(&half, at, sizeof half);
  return widen(half);
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Columns of a row whose lower bound does not exclude them, with both bounds.
struct Doubtful {
  explicit Doubtful(int64_t capacity) : low(capacity + kLanes), high(capacity + kLanes), column(capacity + kLanes) {}

  // Lanes of `lower` that are at most `limit` go to the end of the list; the caller has made room for all of them.
  void take(Vec lower, Vec upper, int32_t first, int lanes, float limit) {
#ifdef __AVX512F__
    __m512 l, u;
    std::memcpy(&l, &lower, sizeof l);
    std::memcpy(&u, &upper, sizeof u);
    const __mmask16 some = static_cast<__mmask16>((1u << lanes) - 1);
    const __mmask16 mask = _mm512_mask_cmp_ps_mask(some, l, _mm512_set1_ps(limit), _CMP_LE_OQ);
    const __m512i number = _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_loadu_si512(kCount));
    // Compressed in a register and stored whole: compressing into memory is microcode on some CPUs.
    _mm512_storeu_ps(low.data() + count, _mm512_maskz_compress_ps(mask, l));
    _mm512_storeu_ps(high.data() + count, _mm512_maskz_compress_ps(mask, u));
    _mm512_storeu_si512(column.data() + count, _mm512_maskz_compress_epi32(mask, number));
    count += __builtin_popcount(mask);
#else
    for (int lane = 0; lane < lanes; ++lane) {
      if (!(lower[lane] <= limit)) continue;
      low[count] = lower[lane];
      high[count] = upper[lane];
      column[count++] = first + lane;
    }
#endif
  }

  // Forgets those whose lower bound exceeds `limit`.
  void keep(float limit) {
    int64_t kept = 0;
    for (int64_t d = 0; d < count; ++d) {
      low[kept] = low[d];
      high[kept] = high[d];
      column[kept] = column[d];
      kept += low[d] <= limit;
    }
    count = kept;
  }

  void drop(int32_t without) {
    int64_t at = std::find(column.begin(), column.begin() + count, without) - column.begin();
    if (at == count) return;
    std::copy(low.begin() + at + 1, low.begin() + count, low.begin() + at);
    std::copy(high.begin() + at + 1, high.begin() + count, high.begin() + at);
    std::copy(column.begin() + at + 1, column.begin() + count, column.begin() + at);
    --count;
  }

  std::vector<float> low, high;
  std::vector<int32_t> column;
  int64_t count = 0;

 private:
  static constexpr int32_t kCount[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
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

  // Columns that are looked at together; one comparison tells whether any of them matters.
  static constexpr int64_t kStrip = 4 * kLanes;
  // Columns at first, while nothing is known: then as many as have been seen, so that bounds tighten in time.
  static constexpr int64_t kFirst = 2 * kStrip;

  void run() const {
    // Padded to whole vectors with rows that are infinitely far.
    const int64_t padded = (block_rows + kLanes - 1) / kLanes * kLanes;
    std::vector<float> square(padded, kInfinity), norm(padded, 0.f);
    for (int64_t j = 0; j < block_rows; ++j) {
      square[j] = static_cast<float>(block_norms[j] * block_norms[j]);
      norm[j] = static_cast<float>(block_norms[j]);
    }
#pragma omp parallel if (count * block_rows >= kSerialElements)
    {
      Doubtful doubtful(padded);
      std::vector<float> best;
#pragma omp for schedule(dynamic, 8)
      for (int64_t i = 0; i < count; ++i) search(i, square.data(), norm.data(), doubtful, best);
    }
  }

  // What a squared distance is in the bounds' terms, at most: scaled, and less |q|^2.
  float limit_of(double distance, double own) const {
    double known = distance * scale * scale;
    return static_cast<float>(known - own + slack * (known + own) + 1e-30);
  }

  // Bounds are tightened over the whole row before the first distance is computed: fewer are left in doubt.
  void search(int64_t i, const float* square, const float* norm, Doubtful& doubtful, std::vector<float>& best) const {
    const int64_t left_out = exclude ? exclude[i] - first : -1;
    const double own = query_norms[i] * query_norms[i];
    double* near = distances + i * k;
    int64_t* names = rows + i * k;
    float limit = limit_of(near[k - 1], own);

    doubtful.count = 0;
    for (int64_t start = 0, stop; start < block_rows; start = stop) {
      stop = std::min(block_rows, start + std::max(kFirst, (first + start) / kStrip * kStrip));
      const int64_t before = doubtful.count;
      collect(i, start, stop, square, norm, limit, doubtful);
      if (left_out >= start && left_out < stop) doubtful.drop(static_cast<int32_t>(left_out));
      if (doubtful.count == before || doubtful.count <= k) continue;
      limit = std::min(limit, tightened(near, own, doubtful, best));
      doubtful.keep(limit);
    }

    for (int64_t d = 0; d < doubtful.count; ++d) {
      if (d + 1 < doubtful.count) fetch(block + doubtful.column[d + 1] * columns, columns);
      if (!(doubtful.low[d] <= limit)) continue;
      const int64_t c = doubtful.column[d];
      double distance = squared_distance(queries + i * columns, block + c * columns, columns);
      if (!(distance < near[k - 1])) continue;  // of equals, the row that came first stays
      int64_t at = 0;
      for (int64_t j = 0; j < k; ++j) at += near[j] <= distance;
      std::copy_backward(near + at, near + k - 1, near + k);
      std::copy_backward(names + at, names + k - 1, names + k);
      near[at] = distance;
      names[at] = first + c;
      limit = std::min(limit, limit_of(near[k - 1], own));
    }
  }

  // Adds the columns from start to stop that may be as near as `limit`.
  void collect(int64_t i, int64_t start, int64_t stop, const float* square, const float* norm, float limit,
               Doubtful& doubtful) const {
    const T* row = products + i * block_rows;
    const float own_error = static_cast<float>(2 * error * query_norms[i]);
    const float round = static_cast<float>(2 * rounding), less = static_cast<float>(1 - slack);
    const float spread = static_cast<float>(2 * slack);
    auto lower_of = [&](Vec product, int64_t c) {
      Vec size = product < 0 ? -product : product;
      return less * vec(square + c) - own_error * vec(norm + c) - 2 * product - round * size;
    };
    auto keep = [&](Vec product, Vec lower, int64_t c, int lanes) {
      Vec size = product < 0 ? -product : product;
      Vec upper = lower + spread * vec(square + c) + 2 * (own_error * vec(norm + c) + round * size);
      doubtful.take(lower, upper, static_cast<int32_t>(c), lanes, limit);
    };
    int64_t j = start;
    for (; j + kStrip <= stop; j += kStrip) {
      Vec product[4], lower[4];
      for (int v = 0; v < 4; ++v) {
        product[v] = as_float(row + j + v * kLanes);
        lower[v] = lower_of(product[v], j + v * kLanes);
      }
      Vec first_two = lower[0] < lower[1] ? lower[0] : lower[1], others = lower[2] < lower[3] ? lower[2] : lower[3];
      if (!any_at_most(first_two < others ? first_two : others, limit)) continue;
      for (int v = 0; v < 4; ++v) keep(product[v], lower[v], j + v * kLanes, kLanes);
    }
    for (; j < stop; j += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, stop - j));
      T tail[kLanes] = {};
      std::memcpy(tail, row + j, lanes * sizeof(T));
      Vec product = as_float(tail);
      keep(product, lower_of(product, j), j, lanes);
    }
  }

  static bool any_at_most(Vec value, float limit) {
#ifdef __AVX512F__
    __m512 v;
    std::memcpy(&v, &value, sizeof v);
    return _mm512_cmp_ps_mask(v, _mm512_set1_ps(limit), _CMP_LE_OQ) != 0;
#else
    bool found = false;
    for (int lane = 0; lane < kLanes; ++lane) found |= value[lane] <= limit;
    return found;
#endif
  }

  // A bound that k rows are sure to stay below: the k-th smallest of what is known and of the upper bounds.
  float tightened(const double* near, double own, const Doubtful& doubtful, std::vector<float>& best) const {
    const float above = static_cast<float>(slack * own + 1e-30);
    best.clear();
    for (int64_t d = 0; d < doubtful.count; ++d) best.push_back(doubtful.high[d] + above);
    for (int64_t j = 0; j < k && near[j] < kInfinity; ++j) best.push_back(limit_of(near[j], own));
    std::nth_element(best.begin(), best.begin() + (k - 1), best.end());
    return best[k - 1];
  }
};

template <typename T>
void update(Address distances, Address rows, Address queries, Address query_norms, Address block, Address block_norms,
            Address products, Address exclude, int64_t count, int64_t block_rows, int64_t columns, int64_t k,
            int64_t first, double scale, double error, double rounding, double slack) {
  nb::gil_scoped_release release;
  Update<T>{distances,  rows,    queries, query_norms, block, block_norms, products, exclude, count,
            block_rows, columns, k,       first,       scale, error,       rounding, slack}
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
