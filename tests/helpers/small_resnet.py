"""ResNets with the names and the code of ResNet-18, but narrower: what takes the place of `models.build` in tests."""

from seal_fast import models
from seal_fast.models import initialise_
from seal_fast.models.resnet import BasicBlock, ResNet


def build(name, num_classes, stem="imagenet", seed=0, width=1.0, depth=2):
    """8 channels instead of 64."""
    model = ResNet(BasicBlock, (depth,) * 4, num_classes, stem, width=8)
    initialise_(model, seed)
    return model


def build_shallow(*args, **options):
    """One block a layer: what the tests of many processes train, which pay for every layer with an exchange."""
    return build(*args, **options, depth=1)


def build_by_name(name, num_classes, stem="imagenet", seed=0, width=1.0):
    """A registered network of an eighth of the channels."""
    return models.build(name, num_classes, stem, seed, width / 8)
