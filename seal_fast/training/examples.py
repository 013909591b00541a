"""Records of single training examples: when each is learnt, how often it is forgotten, by what margin it is right.

A step writes the margins of its images into a tensor on the device; the epoch's end brings the records up to date. An
example is right where its margin is above 0; so equal logits count as wrong.

Sources: forgetting events, Toneva et al., ICLR 2019 (arXiv 1812.05159), definition 1; area under the margin, Pleiss et
al., NeurIPS 2020 (arXiv 2001.10528), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from seal_fast.distributed.world import SINGLE_PROCESS, World


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit less the largest of the others, [B], without gradient; infinite if there is no other class.

    Args:
        logits: [B, C].
        labels: int64 [B].
    """
    logits, own = logits.detach(), labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, float("-inf")).amax(1)


class Examples:
    """Records of `count` training examples, in their sorted path order, on a device.

    Attributes:
        epoch_margins: [count + 1] of this epoch and this process; NaN of examples not shown yet. The last place takes
            the images that stand in for unreadable ones.
        learnt: int32 [count], the epoch of the run in which an example was right for the first time; -1: never.
        forgotten: int32 [count], how often it was wrong after having been right the time before.
        agreed: int32 [count], the last epoch in which it was right; -1: never.
        seen: int32 [count], how often it was shown.
        margin_sum: float64 [count], over all of these.
        right: bool [count], whether it was right the last time.
        ends: bool [phases + 1, count], `right` as this generation began and at the end of each of its phases.
    """

    def __init__(self, count: int, phases: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.epoch_margins = torch.full((count + 1,), float("nan"), dtype=dtype, device=device)
        self.learnt, self.agreed = (torch.full((count,), -1, dtype=torch.int32, device=device) for _ in range(2))
        self.forgotten, self.seen = (torch.zeros(count, dtype=torch.int32, device=device) for _ in range(2))
        self.margin_sum = torch.zeros(count, dtype=torch.float64, device=device)
        self.right = torch.zeros(count, dtype=torch.bool, device=device)
        self.ends = torch.zeros(phases + 1, count, dtype=torch.bool, device=device)

    def write(self, rows: Tensor, margins: Tensor) -> None:
        """Take note of a batch: int64 [B] of the examples, and their margins [B]."""
        self.epoch_margins.index_copy_(0, rows, margins)

    def _epoch(self, world: World) -> tuple[Tensor, Tensor]:
        """This epoch's margins over all processes, float64 [count], and which examples were shown; 0 of the others."""
        own = self.epoch_margins[:-1].double()
        shown = ~own.isnan()
        total = world.sum(torch.stack([own.nan_to_num(0.0, float("inf"), float("-inf")), shown.double()]))
        return total[0].to(own.device), total[1].to(own.device) > 0

    def end_epoch(self, epoch: int, phase: int | None, world: World = SINGLE_PROCESS) -> None:
        """Bring the records up to date; doing it twice is doing it once.

        `epoch` is the run's; `phase` the number of the generation's phase that ends here, if one does. All processes of
        `world` hold the same records afterwards.
        """
        margin, shown = self._epoch(world)
        right = shown & (margin > 0)
        self.forgotten += shown & self.right & ~right
        self.learnt.masked_fill_(right & (self.learnt < 0), epoch)
        self.agreed.masked_fill_(right, epoch)
        self.seen += shown
        self.margin_sum += margin
        self.right = torch.where(shown, right, self.right)
        if phase is not None:
            self.ends[phase + 1] = self.right
        self.epoch_margins.fill_(float("nan"))

    def begin_generation(self) -> None:
        """Forget how the phases of the generation before ended."""
        self.ends.zero_()
        self.ends[0] = self.right

    def records(self) -> dict[str, Tensor]:
        """What a generation's file holds, in host memory."""
        names = ("learnt", "forgotten", "agreed", "seen", "margin_sum", "right", "ends")
        return {name: getattr(self, name).cpu() for name in names}

    def state_dict(self, world: World = SINGLE_PROCESS) -> dict[str, Tensor]:
        """The records and the unfinished epoch of all processes."""
        margin, shown = self._epoch(world)
        return self.records() | {"epoch_margins": margin.masked_fill(~shown, float("nan")).cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor], world: World = SINGLE_PROCESS) -> None:
        """Take over a `state_dict`; the unfinished epoch goes to the first process."""
        for name, tensor in state.items():
            if name != "epoch_margins":
                getattr(self, name).copy_(tensor)
        if world.is_main:
            self.epoch_margins[:-1].copy_(state["epoch_margins"])
