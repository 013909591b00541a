// One look at all parameters and gradients of an optimiser, every step. After a backward pass none of their Python
// objects is in the processor's caches, so they are passed over once, and no Python is run for each.
#include <nanobind/nanobind.h>

#include <memory>
#include <stdexcept>
#include <vector>

#include "../native.h"
#include "../tensors.h"

namespace nb = nanobind;

namespace seal_fast {
namespace {

constexpr uint8_t kFloat = 2, kBfloat = 4;  // DLPack's codes of types

// What a parameter was when it was looked at first.
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

// It refers to no Python object: parameters may refer to their optimiser, which holds this.
struct Places {
  TensorTable table;
  std::vector<Place> of;
};

// A capsule and no class of nanobind's, which would speak of a leak where a program ends with its optimiser alive.
nb::capsule gradient_places(nb::capsule table, nb::list params) {
  auto places = std::make_unique<Places>(Places{TensorTable(table), {}});
  for (nb::handle p : params) {
    TensorView v;
    if (!places->table.view(p, v)) throw std::invalid_argument("a parameter that DLPack cannot describe");
    places->of.push_back(
        {v.address(), v.type_bits, {v.shape, v.shape + v.dimensions}, {v.strides, v.strides + v.dimensions}});
  }
  return nb::capsule(places.release(), [](void* p) noexcept { delete static_cast<Places*>(p); });
}

// The gradients and their addresses as `tagged_addresses` (layout.py) gives them. None where anything is out of the
// ordinary: a parameter moved, or a gradient of another type or memory order than that of its parameter.
// copies: of each parameter, or none; its gradient counts where the parameter has none.
nb::object read_gradients(nb::capsule capsule, nb::list params, nb::list copies) {
  const Places& places = *static_cast<const Places*>(capsule.data());
  const bool copied = nb::len(copies) > 0;
  const nb::object name = nb::steal(PyUnicode_InternFromString("grad"));
  nb::list grads, addresses;
  for (size_t i = 0; i < places.of.size(); ++i) {
    const Place& place = places.of[i];
    TensorView v;
    if (!places.table.view(params[i], v) || v.address() != place.address) return nb::none();
    nb::object grad = params[i].attr(name);
    if (copied) {
      nb::object of_copy = copies[i].attr(name);
      if (!of_copy.is_none()) {
        if (!grad.is_none()) return nb::none();
        grad = of_copy;
      }
    }
    uintptr_t address = 0;
    if (!grad.is_none()) {
      if (!places.table.view(grad, v) || !place.like(v)) return nb::none();
      address = v.address() | (v.type_code == kBfloat);
    }
    grads.append(grad);
    addresses.append(address);
  }
  return nb::make_tuple(grads, addresses);
}

}  // namespace

void bind_gradients(nb::module_& m) {
  m.def("gradient_places", &gradient_places);
  m.def("read_gradients", &read_gradients);
}

}  // namespace seal_fast
