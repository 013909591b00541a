// augment on the CPU: each thread takes a range of images and writes them row by row. A row is first brought into
// output order as bytes (border, flip and grey are settled there, on a third or less of the traffic), then converted by
// one vector loop. A crop that needs none of that is converted straight from the resident set.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#ifdef __SSSE3__
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../native.h"

namespace nb = nanobind;

namespace seal_fast {
namespace {

// Philox4x32-10, with key and counter as kernels/philox.py documents them; the purpose is AUGMENT, which is 0.
std::array<uint32_t, 4> philox(uint64_t seed, uint32_t generation, uint32_t epoch, uint64_t position) {
  uint32_t c0 = static_cast<uint32_t>(position), c1 = epoch, c2 = generation,
           c3 = static_cast<uint32_t>(position >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

struct Job {
  const uint8_t* images;
  const int64_t* index;
  int64_t batch, height, width, channels, size, pad;
  bool flip, train;
  std::array<double, 3> scale, bias;
  uint64_t seed;
  uint32_t generation, epoch;
  uint64_t position;
};

struct Crop {
  int64_t top, left;
  bool flipped;
};

Crop choose(const Job& job, int64_t sample) {
  if (!job.train) return {(job.height - job.size) / 2, (job.width - job.size) / 2, false};
  auto random = philox(job.seed, job.generation, job.epoch, job.position + static_cast<uint64_t>(sample));
  auto below = [](uint32_t word, int64_t n) { return static_cast<int64_t>(word * static_cast<uint64_t>(n) >> 32); };
  return {below(random[0], job.height + 2 * job.pad - job.size + 1) - job.pad,
          below(random[1], job.width + 2 * job.pad - job.size + 1) - job.pad, job.flip && random[2] >> 31 != 0};
}

// Pixels in reverse order, the three bytes of each in their own: five pixels a shuffle. A block's sixteenth byte is
// read from the pixel before and written into the pixel after, so the first and the last pixels go one by one.
void reverse_colour(const uint8_t* from, uint8_t* to, int64_t pixels) {
  int64_t j = 0;
  auto one = [&] { std::memcpy(to + 3 * j, from + 3 * (pixels - 1 - j), 3); };
  if (j < pixels) one(), ++j;
#ifdef __SSSE3__
  const __m128i order = _mm_setr_epi8(12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2, 15);
  for (; pixels - j >= 6; j += 5) {
    __m128i five = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 3 * (pixels - j - 5)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * j), _mm_shuffle_epi8(five, order));
  }
#endif
  for (; j < pixels; ++j) one();
}

// Grey pixels to three equal bytes each, reversed or not.
void spread_grey(const uint8_t* from, uint8_t* to, int64_t pixels, bool reversed) {
  for (int64_t j = 0; j < pixels; ++j) std::memset(to + 3 * j, from[reversed ? pixels - 1 - j : j], 3);
}

// A pixel is finite, so unlike bf16's constructor this rounding (to nearest even) need not spare NaN.
template <typename Out, typename Compute>
Out narrow(Compute value) {
  if constexpr (std::is_same_v<Out, bf16>) {
    uint32_t u;
    std::memcpy(&u, &value, 4);
    bf16 result;
    result.bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    return result;
  } else {
    return static_cast<Out>(value);
  }
}

// Converts one row. The channels' scale and bias are laid out for a whole row, so that its loop is flat and the
// compiler makes full vectors of it whatever the size.
template <typename Out>
class RowConverter {
  using Compute = std::conditional_t<std::is_same_v<Out, double>, double, float>;

 public:
  explicit RowConverter(const Job& job) : scale_(3 * job.size), bias_(3 * job.size) {
    for (size_t k = 0; k < scale_.size(); ++k) {
      scale_[k] = static_cast<Compute>(job.scale[k % 3]);
      bias_[k] = static_cast<Compute>(job.bias[k % 3]);
    }
  }

  void operator()(const uint8_t* __restrict from, Out* __restrict to) const {
    const Compute* __restrict scale = scale_.data(), * __restrict bias = bias_.data();
    const int64_t n = static_cast<int64_t>(scale_.size());
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) to[j] = narrow<Out>(static_cast<Compute>(from[j]) * scale[j] + bias[j]);
  }

 private:
  std::vector<Compute> scale_, bias_;
};

// Where a sample's pixels come from. Columns are the same for every row: `before` of border, `seen` of image, then
// border.
struct Source {
  const uint8_t* image;
  int64_t top, height, row_bytes, offset, before, seen;
  bool flipped;

  Source(const Job& job, int64_t sample) {
    const Crop crop = choose(job, sample);
    const int64_t first = std::clamp<int64_t>(crop.left, 0, job.width);
    const int64_t last = std::clamp<int64_t>(crop.left + job.size, first, job.width);
    top = crop.top;
    height = job.height;
    row_bytes = job.width * job.channels;
    offset = first * job.channels;
    seen = last - first;
    before = std::min(crop.flipped ? crop.left + job.size - last : first - crop.left, job.size - seen);
    flipped = crop.flipped;
    image = job.images + job.index[sample] * height * row_bytes;
  }

  // The first byte seen of an output row, or null where the row is border.
  const uint8_t* row(int64_t y) const {
    const bool inside = seen > 0 && top + y >= 0 && top + y < height;
    return inside ? image + (top + y) * row_bytes + offset : nullptr;
  }
};

// Rows are staged by the block (see below) of about this many bytes: past the store buffer, well within the first
// cache.
constexpr int64_t kBlockBytes = 4096;

template <typename Out>
void image(const Job& job, const Source& source, const Source& next, const RowConverter<Out>& convert,
           std::vector<uint8_t>& staged, Out* out) {
  const int64_t row_bytes = 3 * job.size, block = static_cast<int64_t>(staged.size()) / row_bytes;
  const bool direct = job.channels == 3 && !source.flipped && source.seen == job.size;
  if (!direct)
    std::fill(staged.begin(), staged.end(), uint8_t{0});  // of which the rows only ever overwrite what is seen
  for (int64_t start = 0; start < job.size; start += block) {
    const int64_t rows = std::min(block, job.size - start);
    for (int64_t y = 0; y < rows; ++y) {
      const uint8_t* from = source.row(start + y);
      uint8_t* to = staged.data() + y * row_bytes;
      if (from == nullptr) {
        std::memset(to, 0, static_cast<size_t>(row_bytes));
      } else if (direct) {
        continue;
      } else if (job.channels == 1) {
        spread_grey(from, to + 3 * source.before, source.seen, source.flipped);
      } else if (source.flipped) {
        reverse_colour(from, to + 3 * source.before, source.seen);
      } else {
        std::memcpy(to + 3 * source.before, from, static_cast<size_t>(3 * source.seen));
      }
    }
    // Only now, because a wide load of bytes just written in narrow stores waits for the store buffer to drain.
    // The next image is anywhere in memory: fetching it a row at a time, between conversions, hides that.
    for (int64_t y = 0; y < rows; ++y, out += row_bytes) {
      if (const uint8_t* row = next.row(start + y)) {
        for (int64_t k = 0; k < next.seen * job.channels; k += 64) __builtin_prefetch(row + k, 0, 2);
      }
      const uint8_t* from = direct ? source.row(start + y) : nullptr;
      convert(from != nullptr ? from : staged.data() + y * row_bytes, out);
    }
  }
}

template <typename Out>
void batch(const Job& job, Out* out) {
  const RowConverter<Out> convert(job);
  const int64_t row_bytes = 3 * job.size, elements = row_bytes * job.size;
  const int64_t block = std::clamp<int64_t>(kBlockBytes / row_bytes, 1, job.size);
#pragma omp parallel if (job.batch * elements >= kSerialElements)
  {
    std::vector<uint8_t> staged(static_cast<size_t>(block * row_bytes));
#pragma omp for schedule(static)
    for (int64_t sample = 0; sample < job.batch; ++sample) {
      const Source source(job, sample), next(job, std::min(sample + 1, job.batch - 1));
      image(job, source, next, convert, staged, out + sample * elements);
    }
  }
}

// Returns the first sample whose index lies outside the images, having written nothing, or -1.
int64_t augment(Address out, int dtype, Address images, std::array<int64_t, 4> shape, Address index, int64_t samples,
                int64_t size, std::array<double, 3> scale, std::array<double, 3> bias, int64_t pad, bool flip,
                bool train, uint64_t seed, uint32_t generation, uint32_t epoch, uint64_t position) {
  const Job job{images, index, samples, shape[1], shape[2], shape[3],   size,  pad,
                flip,   train, scale,   bias,     seed,     generation, epoch, position};
  for (int64_t b = 0; b < samples; ++b)
    if (job.index[b] < 0 || job.index[b] >= shape[0]) return b;
  if (dtype == 0) batch<bf16>(job, out);
  if (dtype == 1) batch<_Float16>(job, out);
  if (dtype == 2) batch<float>(job, out);
  if (dtype == 3) batch<double>(job, out);
  return -1;
}

}  // namespace

void bind_augment(nb::module_& m) { m.def("augment", &augment, nb::call_guard<nb::gil_scoped_release>()); }

}  // namespace seal_fast
