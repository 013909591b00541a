// Passes over a channels-last matrix [rows, channels]: how it is cut into tiles, and sums by channel over threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <vector>

#include "../native.h"

namespace seal_fast {

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
  Vec load(const bf16* at) const { return widen(read<Half>(at)); }
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

}  // namespace seal_fast
