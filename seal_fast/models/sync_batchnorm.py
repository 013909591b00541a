"""BatchNorm over all processes: the statistics of the whole batch, on any device.

torch's SyncBatchNorm needs GPUs, and its graph breaks; this is plain arithmetic around one differentiable collective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from seal_fast.kernels.torch_private import all_reduce_sum

BATCHNORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm


@dataclass
class Link:
    """The processes that share a batch; all layers of a network have the same link.

    `connected` is False while every process computes the same whole batch, so that nothing is exchanged.
    """

    rank: int
    processes: int
    connected: bool = True


class SyncBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d with the statistics of all processes, and the same parameters and buffers."""

    link: Link

    def forward(self, input: Tensor) -> Tensor:
        """As BatchNorm2d's, for networks that call it; the registered ones call `sync_norm_act` themselves."""
        if not (self.training and self.link.connected):
            return super().forward(input)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return sync_norm_act(self, input, None, False)


def synchronise_(model: nn.Module) -> Link:
    """Turn every BatchNorm2d of a network into one over all processes of the default group, in place.

    Returns:
        The link that they share.
    """
    link = Link(dist.get_rank(), dist.get_world_size())
    for name, norm in list(model.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            # Parameters keep their order, which defines the parameter groups.
            changed = SyncBatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
            changed._parameters, changed._buffers = norm._parameters, norm._buffers
            changed.link = link
            model.set_submodule(name, changed)
    return link


def statistics(x: Tensor, link: Link) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and number of values, over N, H and W of all processes; differentiable.

    The processes' own means and variances are combined (Chan, Golub and LeVeque 1983, equation 2.1), which loses no
    digits where the mean is large, as sums of squares would. One exchange of 2 C + 1 numbers.
    """
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    local = torch.cat([mean, variance, mean.new_full((1,), x.numel() // x.shape[1])])
    row = F.one_hot(torch.tensor(link.rank, device=x.device), link.processes).to(local.dtype)
    rows = all_reduce_sum(row[:, None] * local)  # a gather that is its own transpose
    means, variances, counts = rows.split([len(mean), len(mean), 1], 1)
    share = counts / counts.sum()
    whole = (share * means).sum(0)
    return whole, (share * (variances + (means - whole).square())).sum(0), counts.sum()


def sync_norm_act(norm: SyncBatchNorm2d, x: Tensor, residual: Tensor | None, act: bool) -> Tensor:
    """`norm_act` in training, with the statistics of all processes; computed in the parameters' type."""
    weight, momentum, running_mean, running_var = norm.weight, norm.momentum, norm.running_mean, norm.running_var
    assert running_mean is not None and running_var is not None and momentum is not None
    wide = x.to(weight.dtype)
    mean, variance, count = statistics(wide, norm.link)
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (count / (count - 1)), momentum)
    scale = weight * (variance + norm.eps).rsqrt()
    y = (wide - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    if residual is not None:
        y = y + residual
    return (F.relu(y) if act else y).to(x.dtype)
