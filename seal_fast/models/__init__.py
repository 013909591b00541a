"""The networks, by name."""

from seal_fast.models.init import bias_uniform_, fan_in, generator, he_normal_, initialise_
from seal_fast.models.layers import Network, Stem
from seal_fast.models.order import features, forward_order
from seal_fast.models.registry import architecture, build
from seal_fast.models.resnet import ResNet, resnet18, resnet34, resnet50
from seal_fast.models.sync_batchnorm import BATCHNORMS, Link, synchronise_
from seal_fast.models.weights import load_weights

__all__ = [
    "BATCHNORMS",
    "Link",
    "Network",
    "ResNet",
    "Stem",
    "architecture",
    "bias_uniform_",
    "build",
    "fan_in",
    "features",
    "forward_order",
    "generator",
    "he_normal_",
    "initialise_",
    "load_weights",
    "resnet18",
    "resnet34",
    "resnet50",
    "synchronise_",
]
