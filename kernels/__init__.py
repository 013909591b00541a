"""Custom operations: one folder an op, each with a plain-torch reference, a Triton and a native C++ kernel."""

from .augment import augment as augment
from .conv2d import conv2d as conv2d
from .max_pool import max_pool as max_pool
from .norm_act import norm_act as norm_act
