"""Small networks and their whole Hessian in float64, by torch.func: the truth that the operator is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian

from seal_fast.models import initialise_
from seal_fast.models.resnet import BasicBlock, ResNet


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def resnet(block=BasicBlock, depths=(1, 1, 1, 1), stem="small", width=1, classes=3, dtype=torch.float64):
    """A ResNet with BatchNorm statistics and parameters that are far from the identity."""
    model = ResNet(block, depths, classes, stem, width)
    initialise_(model, 0)
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=draw)
            module.running_var.uniform_(0.5, 2, generator=draw)
            module.weight.data.uniform_(0.5, 1.5, generator=draw)
            module.bias.data.normal_(0, 0.3, generator=draw)
    return model.to(dtype).eval().to(memory_format=torch.channels_last)


def images(count=12, size=8, classes=3, dtype=torch.float64):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(count, 3, size, size, generator=draw, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last), torch.randint(0, classes, (count,), generator=draw)


def dense_hessian(model, loss, batches, names=None):
    """[n, n]: the Hessian of the mean loss over all images of the batches."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    names = list(parameters) if names is None else names
    shapes = [parameters[name].shape for name in names]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    total = sum(len(labels) for _, labels in batches)

    def value(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        own = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        every = parameters | own | buffers
        return sum(loss(functional_call(model, every, (x,)), y) * len(y) for x, y in batches) / total

    return hessian(value)(torch.cat([parameters[name].flatten() for name in names]))


class Matrix:
    """A symmetric matrix as an operator that counts its products."""

    def __init__(self, matrix):
        self.matrix, self.dtype, self.device, self.shape = matrix, matrix.dtype, matrix.device, tuple(matrix.shape)
        self.hvps = 0

    def multiply(self, rows):
        self.hvps += len(rows)
        return rows @ self.matrix


def with_spectrum(values, seed=0):
    """A dense symmetric matrix with these eigenvalues."""
    values = torch.as_tensor(values, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=draw, dtype=torch.float64)).Q
    return Matrix(q * values @ q.T)
