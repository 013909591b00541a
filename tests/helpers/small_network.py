"""A small convolutional network, its two groups and a few training steps: what the optimiser's tests share."""

import torch
from torch import nn

LR = torch.tensor(0.1, dtype=torch.float64)
# Absolute and relative, for values of order one after a few steps.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


class Network(nn.Sequential):
    def forward(self, input):  # torch.compile leaves torch's own forward alone
        for module in self:
            input = module(input)
        return input


def network(dtype=torch.float64, channels_last=False, seed=0):
    torch.manual_seed(seed)
    model = Network(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1, bias=False), nn.Flatten(), nn.Linear(80, 7)
    ).to(dtype)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def named_groups(model):
    named = list(model.named_parameters())
    return [{"name": "early", "params": named[:4]}, {"name": "late", "params": named[4:]}]


def backward(model, seed=0, factor=1.0):
    draw = torch.Generator().manual_seed(seed)
    p = next(model.parameters())
    images = torch.randn(4, 3, 6, 6, generator=draw, dtype=torch.float64).to(p.dtype)
    (model(images).square().mean() * factor).backward()


def close(model, other, dtype=torch.float64):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def train(model, optimizer, steps=3, first=0):
    for seed in range(first, first + steps):
        backward(model, seed)
        optimizer.step()
        optimizer.zero_grad()
