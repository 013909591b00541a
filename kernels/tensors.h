// A torch tensor as C++ sees it without torch's headers: DLPack's table of C functions, which torch hands out as
// torch.Tensor.__dlpack_c_exchange_api__. Only what is read here is declared, with the layout of DLPack 1.x
// (dlpack.h, "DLPackExchangeAPI").
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>

namespace seal_fast {

constexpr int32_t kCpu = 1;                 // DLPack's codes of devices
constexpr uint8_t kFloat = 2, kBfloat = 4;  // and of types

// Shape and strides belong to the tensor.
struct TensorView {
  void* data;
  int32_t device_type, device_id;
  int32_t dimensions;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  const int64_t *shape, *strides;
  uint64_t byte_offset;

  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data) + byte_offset; }
};

class TensorTable {
 public:
  explicit TensorTable(nanobind::capsule capsule)
      : table_(static_cast<const Table*>(capsule.data("dlpack_exchange_api"))) {
    if (table_->major_version != 1 || !table_->view) throw std::invalid_argument("this torch speaks another DLPack");
  }

  // Whether `tensor` can be described; nothing is left raised where it cannot.
  bool view(nanobind::handle tensor, TensorView& out) const {
    if (table_->view(tensor.ptr(), &out) == 0) return true;
    PyErr_Clear();
    return false;
  }

  // The address of one float32 number on the CPU, or 0 for None. False: it is something else.
  bool number(nanobind::handle tensor, uintptr_t& address) const {
    TensorView v;
    if (tensor.is_none()) return true;
    if (!view(tensor, v) || v.device_type != kCpu || v.type_code != kFloat || v.type_bits != 32) return false;
    for (int32_t d = 0; d < v.dimensions; ++d)
      if (v.shape[d] != 1) return false;
    address = v.address();
    return true;
  }

 private:
  struct Table {
    uint32_t major_version, minor_version;
    const void* older;
    const void *allocate, *share, *import;
    int (*view)(void* object, TensorView* out);
    const void* stream;
  };
  const Table* table_;
};

}  // namespace seal_fast
