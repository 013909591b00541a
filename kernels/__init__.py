"""Custom operations: one folder an op, each with a plain-torch reference, a Triton and a native C++ kernel."""

from seal_fast.kernels.augment import augment as augment
from seal_fast.kernels.conv2d import conv2d as conv2d
from seal_fast.kernels.max_pool import max_pool as max_pool
from seal_fast.kernels.norm_act import norm_act as norm_act
