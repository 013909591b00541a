// One look at all parameters and gradients of an optimiser, every step. After a backward pass none of their Python
// objects is in the processor's caches, so they are passed over once, and no Python is run for each.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "../tensors.h"

namespace seal_fast {

// Addresses; lowest bit set: bfloat16 (tagged_addresses in layout.py). With several parts a gradient is their sum, and
// each part has a list of addresses, one behind the other.
struct Gradients {
  std::vector<uintptr_t> addresses;
  int64_t parts;

  // 0: there is none.
  uintptr_t at(int64_t index, int64_t part = 0) const { return addresses[part * (addresses.size() / parts) + index]; }
};

// What a parameter was when it was looked at first.
struct Place {
  uintptr_t address;
  uint8_t bits;
  std::vector<int64_t> shape, strides;

  // Of the same memory order, and of a type that the kernel takes.
  bool like(const TensorView& v) const;
};

// It refers to no Python object: parameters may refer to their optimiser, which holds this.
struct Places {
  TensorTable table;
  std::vector<Place> of;

  // The gradients' addresses, and the gradients themselves, which live as long as `held`. False where anything is out
  // of the ordinary: a parameter moved, or a gradient of another type or memory order than that of its parameter.
  // copies: of each parameter, or none; its gradient counts where the parameter has none.
  bool look(nanobind::list params, nanobind::list copies, std::vector<uintptr_t>& addresses,
            std::vector<nanobind::object>& held) const;
};

}  // namespace seal_fast
