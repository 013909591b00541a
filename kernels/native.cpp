// The Python module of the native CPU kernels. Each op's files define their own bind functions; this file lists
// them.
#include "native.h"

#include <nanobind/nanobind.h>

NB_MODULE(SEAL_FAST_MODULE, m) {
  m.doc() = "seal_fast's native CPU kernels; called with raw addresses by the Python wrappers, which check everything.";
  seal_fast::bind_annealed_sgd(m);
  seal_fast::bind_nearest(m);
  seal_fast::bind_norm_act(m);
}
