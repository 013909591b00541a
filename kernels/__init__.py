"""Custom operations: one folder an op, each with a plain-torch reference, a Triton and a native C++ kernel."""

from .augment import augment as augment
from .norm_act import norm_act as norm_act
