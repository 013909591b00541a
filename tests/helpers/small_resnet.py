"""ResNets with the names and the code of ResNet-18, but narrower: what takes the place of `models.build` in tests."""

from seal_fast.models import initialise_
from seal_fast.models.resnet import BasicBlock, Bottleneck, ResNet


def build(name, num_classes, stem="imagenet", seed=0, depth=2):
    """8 channels instead of 64."""
    model = ResNet(BasicBlock, (depth,) * 4, num_classes, stem, width=8)
    initialise_(model, seed)
    return model


def build_shallow(*args, **options):
    """One block a layer: what the tests of many processes train, which pay for every layer with an exchange."""
    return build(*args, **options, depth=1)


def build_by_name(name, num_classes, stem="imagenet", seed=0):
    """ResNet-18, -34 or -50, of 8 channels."""
    block, depths = {
        "resnet18": (BasicBlock, (2, 2, 2, 2)),
        "resnet34": (BasicBlock, (3, 4, 6, 3)),
        "resnet50": (Bottleneck, (3, 4, 6, 3)),
    }[name]
    model = ResNet(block, depths, num_classes, stem, width=8)
    initialise_(model, seed)
    return model
