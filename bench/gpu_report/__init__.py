"""The GPU kernels and the compiled step, judged from the compiler's output on a machine that need not have a GPU."""
