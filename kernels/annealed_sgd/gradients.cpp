#include "gradients.h"

#include <memory>
#include <stdexcept>
#include <utility>

#include "../native.h"

namespace nb = nanobind;

namespace seal_fast {

bool Place::like(const TensorView& v) const {
  const bool own = v.type_code == kFloat && v.type_bits == bits, half = v.type_code == kBfloat && v.type_bits == 16;
  if (!(own || half) || v.dimensions != static_cast<int32_t>(shape.size())) return false;
  for (size_t d = 0; d < shape.size(); ++d)
    if (v.shape[d] != shape[d] || (shape[d] != 1 && v.strides[d] != strides[d])) return false;
  return true;
}

bool Places::look(nb::list params, nb::list copies, std::vector<uintptr_t>& addresses,
                  std::vector<nb::object>& held) const {
  const bool copied = nb::len(copies) > 0;
  const nb::object name = nb::steal(PyUnicode_InternFromString("grad"));
  addresses.reserve(of.size());
  held.reserve(of.size());
  for (size_t i = 0; i < of.size(); ++i) {
    TensorView v;
    if (!table.view(params[i], v) || v.address() != of[i].address) return false;
    nb::object grad = params[i].attr(name);
    if (copied) {
      nb::object of_copy = copies[i].attr(name);
      if (!of_copy.is_none()) {
        if (!grad.is_none()) return false;
        grad = of_copy;
      }
    }
    uintptr_t address = 0;
    if (!grad.is_none()) {
      if (!table.view(grad, v) || !of[i].like(v)) return false;
      address = v.address() | (v.type_code == kBfloat);
    }
    addresses.push_back(address);
    held.push_back(std::move(grad));
  }
  return true;
}

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

void bind_gradients(nb::module_& m) { m.def("gradient_places", &gradient_places); }

}  // namespace seal_fast
