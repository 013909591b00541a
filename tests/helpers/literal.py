"""Independent truths, written from the definitions, and the inputs they are asked for."""

import numpy as np
import torch

ONES = 0xFFFFFFFF


def literal_philox(counter, key):
    """Python's unbounded integers, written from the paper's definition."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & ONES, (p0 >> 32) ^ c[3] ^ k[1], p0 & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return tuple(c)


def pool(classes=6, count=30, dimension=40, seed=0, dtype=torch.float64):
    """Features as a network's last ReLU pools them: not negative, classes apart but not wholly."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dimension, generator=random, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(count)
    values = (centres[labels] * 0.6 + torch.randn(len(labels), dimension, generator=random, dtype=torch.float64)).relu()
    return values.to(dtype), labels.numpy()


def literal(queries, bank, k):
    """Every distance in float64, sorted by (distance, row)."""
    q, b = queries.double().numpy(), bank.double().numpy()
    distances = np.stack([((b - row) ** 2).sum(1) for row in q])
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, 1)


def features(kind, queries=70, bank=900, size=33):
    random = torch.Generator().manual_seed(3)
    x = torch.randn(queries + bank, size, generator=random)
    if kind == "relu":
        x = x.relu() * 1e-4
    if kind == "far":  # the mean is large beside the spread
        x = x + 1000
    if kind == "huge":
        x = x * 1e15
    if kind == "tiny":
        x = x * 1e-22
    if kind == "ties":  # few values in few dimensions: most distances are shared
        x = x[:, :3].round()
    if kind == "dead":
        x = torch.zeros_like(x)
    if kind == "doubled":
        x[queries + bank // 2 :] = x[queries : queries + bank // 2]
    if kind == "clusters":  # within a class far nearer than the float32 error of the products
        centres = torch.randn(6, size, generator=random) * 100
        x = x * 1e-4 + centres[torch.arange(len(x)) % 6]
    if kind == "float64":
        x = x.double() * 1e-9 + 1
    return x[:queries], x[queries:]
