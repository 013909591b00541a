// What the native kernels share: bfloat16, vectors, addresses from Python, and the bind functions.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <cstring>

namespace seal_fast {

// bfloat16 is the upper half of a float. Rounding is to nearest even, NaN stays NaN, as in torch.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  explicit bf16(float value) {
    uint32_t u;
    std::memcpy(&u, &value, 4);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
  explicit operator float() const {
    uint32_t u = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &u, 4);
    return value;
  }
  explicit operator double() const { return static_cast<float>(*this); }
};

// Sixteen neighbouring values. The compiler cuts them into whatever registers the x86-64 level has.
constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Half __attribute__((vector_size(2 * kLanes)));

inline Vec widen(Half value) {
  Bits bits = __builtin_convertvector(value, Bits) << 16;
  return reinterpret_cast<Vec&>(bits);
}

// Work smaller than this stays on one thread: waking the others costs more (about 5 us) than they save.
constexpr int64_t kSerialElements = 16384;

// An address as Python's tensor.data_ptr() gives it.
template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The same as an argument that turns into a pointer of any type.
struct Address {
  uintptr_t value;
  template <typename T>
  operator T*() const {
    return pointer<T>(value);
  }
};

void bind_annealed_sgd(nanobind::module_& m);
void bind_nearest(nanobind::module_& m);
void bind_norm_act(nanobind::module_& m);

}  // namespace seal_fast

template <>
struct nanobind::detail::type_caster<seal_fast::Address> {
  NB_TYPE_CASTER(seal_fast::Address, const_name("int"))
  bool from_python(handle source, uint8_t flags, cleanup_list* cleanup) noexcept {
    make_caster<uintptr_t> number;
    if (!number.from_python(source, flags, cleanup)) return false;
    value.value = number.value;
    return true;
  }
};
