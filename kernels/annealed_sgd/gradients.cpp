// One look at all parameters and gradients of an optimiser, every step. After a backward pass none of their Python
// objects is in the processor's caches, so they are passed over once, and no Python is run for each.
#include <nanobind/nanobind.h>

#include <stdexcept>
#include <vector>

#include "../native.h"
#include "../tensors.h"

namespace nb = nanobind;

namespace seal_fast {
namespace {

constexpr uint8_t kFloat = 2, kBfloat = 4;  // DLPack's codes of types

class GradientReader {
 public:
  // copies: of each parameter, or none; its gradient counts where the parameter has none.
  GradientReader(nb::capsule table, nb::list params, nb::list copies)
      : table_(table), params_(params), copies_(copies), grad_(nb::str("grad")) {
    for (nb::handle p : params_) {
      TensorView v;
      if (!table_.view(p, v)) throw std::invalid_argument("a parameter that DLPack cannot describe");
      places_.push_back(
          {v.address(), v.type_bits, {v.shape, v.shape + v.dimensions}, {v.strides, v.strides + v.dimensions}});
    }
  }

  // The gradients and their addresses as `tagged_addresses` (layout.py) gives them. None where anything is out of the
  // ordinary: a parameter moved, or a gradient of another type or memory order than that of its parameter.
  nb::object read() const {
    nb::list grads, addresses;
    const size_t count = nb::len(params_);
    const bool copied = nb::len(copies_) > 0;
    for (size_t i = 0; i < count; ++i) {
      const Place& place = places_[i];
      TensorView v;
      if (!table_.view(params_[i], v) || v.address() != place.address) return nb::none();
      nb::object grad = params_[i].attr(grad_);
      if (copied) {
        nb::object of_copy = copies_[i].attr(grad_);
        if (!of_copy.is_none()) {
          if (!grad.is_none()) return nb::none();
          grad = of_copy;
        }
      }
      uintptr_t address = 0;
      if (!grad.is_none()) {
        if (!table_.view(grad, v) || !place.like(v)) return nb::none();
        address = v.address() | (v.type_code == kBfloat);
      }
      grads.append(grad);
      addresses.append(address);
    }
    return nb::make_tuple(grads, addresses);
  }

 private:
  struct Place {
    uintptr_t address;
    uint8_t bits;
    std::vector<int64_t> shape, strides;

    // Of the same memory order, and of a type that the kernel takes.
    bool like(const TensorView& v) const {
      const bool own = v.type_code == kFloat && v.type_bits == bits, half = v.type_code == kBfloat && v.type_bits == 16;
      if (!(own || half) || v.dimensions != static_cast<int32_t>(shape.size())) return false;
      for (size_t d = 0; d < shape.size(); ++d)
        if (v.shape[d] != shape[d] || (shape[d] != 1 && v.strides[d] != strides[d])) return false;
      return true;
    }
  };

  TensorTable table_;
  nb::list params_, copies_;
  nb::str grad_;
  std::vector<Place> places_;
};

}  // namespace

void bind_gradients(nb::module_& m) {
  nb::class_<GradientReader>(m, "GradientReader")
      .def(nb::init<nb::capsule, nb::list, nb::list>())
      .def("read", &GradientReader::read);
}

}  // namespace seal_fast
