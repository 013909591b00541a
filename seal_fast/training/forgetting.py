"""Operators on tensors, in place, so that layouts, optimiser views and compiled graphs stay valid.

Draws are functions of (seed, purpose, generation, epoch, name), made in float32 whatever the parameters' type. Sources:
the papers that `seal_fast.methods` cites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seal_fast.methods.operators import Align, Distribution, Mask, Mix, Operator, Part, Rescale, Scope
from seal_fast.methods.partition import ForwardOrder
from seal_fast.methods.schedule import Timeline
from seal_fast.models import generator
from seal_fast.utils.errors import UsageError

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Leaf:
    """A parameter, or a floating-point buffer.

    Attributes:
        fan_in: inputs of its layer.
        at: its place in the forward order.
        drawn: whether its initial distribution is known; others, such as a class token, keep their value.
    """

    name: str
    tensor: Tensor
    part: Part
    fan_in: int = 1
    at: int = 0
    drawn: bool = True

    def draw(self, distribution: Distribution, random: torch.Generator) -> Tensor:
        """New values in float32; see `seal_fast.methods.operators.Source`."""
        values, bound = torch.empty(self.tensor.shape, dtype=torch.float32), 1 / math.sqrt(self.fan_in)
        if distribution == "unit-normal":
            return values.normal_(generator=random)
        if not self.drawn:
            return values.copy_(self.tensor)
        if self.part in ("norm", "statistics"):
            return values.fill_(self.name.endswith((".weight", "_var")))
        if self.part == "weight" and distribution == "he-normal":
            return values.normal_(0, math.sqrt(2 / self.fan_in), generator=random)
        return values.uniform_(-bound, bound, generator=random)


def leaves(model: nn.Module, order: ForwardOrder) -> list[Leaf]:
    """All floating-point tensors of a network in forward order; a module's statistics come after its parameters."""
    found, places = [], {name: i for i, name in enumerate(order.sizes)}
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(prefix, recurse=False))
        for name, tensor in own.items():
            kind = name.rpartition(".")[2]
            weight = own.get(name.removesuffix(kind) + kind.replace("bias", "weight"))  # of attention: in_proj_weight
            if weight is not None and weight.ndim > 1 and ("weight" in kind or "bias" in kind):
                part = "weight" if weight is tensor else "bias"
                found.append(Leaf(name, tensor, part, weight[0].numel(), places[name]))
            else:
                found.append(Leaf(name, tensor, "norm", at=places[name], drawn=kind in ("weight", "bias")))
        last = max((places[name] for name in own), default=order.starts.get(prefix, 0))
        for name, tensor in module.named_buffers(prefix, recurse=False):
            if tensor.is_floating_point():
                statistics = name.endswith(("running_mean", "running_var"))
                found.append(Leaf(name, tensor, "statistics", at=last, drawn=statistics))
    return sorted(found, key=lambda leaf: leaf.at)


def select(everything: Iterable[Leaf], order: ForwardOrder, scope: Scope, what: str) -> list[Leaf]:
    """The leaves in a scope; UsageError, which `what` begins, if a module is unknown or the scope holds nothing."""
    start = order.position(scope.start, f"{what}:") if scope.start else 0
    stop = order.position(scope.stop, f"{what}:") if scope.stop else len(order.sizes)
    inside = [leaf for leaf in everything if start <= leaf.at < stop]
    inside = [leaf for leaf in inside if not (scope.without and scope.without in leaf.name)]
    chosen = [leaf for leaf in inside if leaf.part in scope.parts]
    # A network without BatchNorm has no statistics to change; any other empty scope is a mistake.
    if not chosen and (scope.parts != ("statistics",) or any(leaf.part == "statistics" for leaf in everything)):
        raise UsageError(f"{what}: the network has no {' or '.join(scope.parts)} there")
    return chosen


def check_scopes(timeline: Timeline, model: nn.Module, order: ForwardOrder) -> None:
    """Make sure that every scope of a timeline holds something; UsageError as of `select`."""
    everything = leaves(model, order)
    for g, phases in enumerate(timeline.generations):
        for phase in phases:
            for what, scope in phase.scopes():
                select(everything, order, scope, f"generation {g}, phase {phase.name}: {what}")


class Forgetting:
    """Applies operators to a network, in place.

    `seed` is that of the draws; `sources` are callables by kind (initial, snapshot, average), returning values by name.
    `gradients`, given a batch size, a share of the training images and whether these are augmented, yields the
    parameters' gradients by name, batch by batch; every process must get the same.
    """

    def __init__(
        self,
        model: nn.Module,
        order: ForwardOrder,
        seed: int,
        sources: Mapping[str, Callable[[], Values]],
        gradients: Callable[[int | None, float, bool], Iterator[Values]],
    ) -> None:
        self.model, self.order, self.seed, self.sources, self.gradients = model, order, seed, sources, gradients

    @torch.no_grad()
    def apply(self, operators: Iterable[Operator], generation: int, epoch: int) -> None:
        """Apply operators one after the other at the start of an epoch."""
        self.leaves = leaves(self.model, self.order)
        for i, operator in enumerate(operators):
            self.moment = f"{generation} {{}}" + (f" epoch {epoch}" if epoch else "") + (f" operator {i}" if i else "")
            chosen = select(self.leaves, self.order, operator.scope, str(operator))
            if isinstance(operator, Mix):
                self._mix(operator, chosen)
            elif isinstance(operator, Align):
                self._align(operator, chosen)
            elif isinstance(operator, Rescale):
                initial = self.sources["initial"]()
                for leaf in chosen:
                    if norm := leaf.tensor.norm():
                        leaf.tensor.mul_(initial[leaf.name].norm().to(norm.device) / norm)
            else:
                for leaf in chosen:
                    leaf.tensor.copy_(orthogonalise(leaf.tensor, operator.iterations))

    def _generator(self, purpose: str, name: str, once: bool = False) -> torch.Generator:
        return generator(self.seed, f"{purpose} {name if once else self.moment.format(name)}")

    def _mix(self, mix: Mix, chosen: list[Leaf]) -> None:
        masks = self._masks(mix.mask, chosen) if mix.mask else {}
        kind = mix.source.kind
        given = self.sources[kind]() if kind in self.sources else {}
        for leaf in chosen:
            p = leaf.tensor
            if kind == "zero":
                value = torch.zeros_like(p)
            elif kind == "draw":
                value = leaf.draw(mix.source.distribution, self._generator("reinitialise", leaf.name)).to(p)
            else:
                value = given[leaf.name].to(p)
            if mix.keep or mix.add != 1:
                value = mix.keep * p + mix.add * value
            p.copy_(torch.where(masks[leaf.name], value, p) if masks else value)

    def _masks(self, mask: Mask, chosen: list[Leaf]) -> dict[str, Tensor]:
        if mask.by in ("magnitude", "snip"):
            return self._ranked(mask, chosen)
        return {leaf.name: self._mask(mask, leaf).to(leaf.tensor.device) for leaf in chosen}

    def _mask(self, mask: Mask, leaf: Leaf) -> Tensor:
        """Where an operator touches a tensor, by a mask that needs no other tensor."""
        shape = leaf.tensor.shape
        if mask.by == "nonzero":
            return leaf.tensor != 0
        random = self._generator("mask", leaf.name, once=not mask.anew)
        if mask.by == "wels":
            return torch.rand(shape, dtype=torch.float32, generator=random) < mask.share
        if mask.by == "rows":
            chosen = torch.ones(shape, dtype=torch.bool)
            chosen[torch.randperm(len(chosen), generator=random)[mask.count :]] = False
            return chosen
        weights = [other.name for other in self.leaves if other.part == "weight"]
        kept = [math.ceil(round((1 - mask.share) * n, 6)) for n in shape[:2]]
        if leaf.name == weights[0] and len(kept) > 1:
            kept[1] = shape[1]
        if leaf.name == weights[-1]:
            kept[0] = shape[0]
        touched = torch.ones(shape, dtype=torch.bool)
        touched[tuple(slice(n) for n in kept)] = False
        return touched

    def _ranked(self, mask: Mask, chosen: list[Leaf]) -> dict[str, Tensor]:
        """True where the score is among the lowest."""
        pool = [leaf for leaf in self.leaves if leaf.part != "statistics"] if mask.across == "network" else chosen
        scores = {leaf.name: leaf.tensor.detach().abs() for leaf in {x.name: x for x in [*pool, *chosen]}.values()}
        if mask.by == "snip":
            totals = {name: torch.zeros_like(score) for name, score in scores.items()}
            for batch in self.gradients(None, mask.images, True):
                for name, total in totals.items():
                    total += batch[name].abs()
            scores = {name: score * totals[name] for name, score in scores.items()}
        if mask.across == "tensor":
            return {leaf.name: lowest({leaf.name: scores[leaf.name]}, mask.share)[leaf.name] for leaf in chosen}
        return lowest({leaf.name: scores[leaf.name] for leaf in pool}, mask.share)

    def _align(self, align: Align, chosen: list[Leaf]) -> None:
        directions = {leaf.name: torch.zeros_like(leaf.tensor) for leaf in chosen}
        for batch in self.gradients(align.batch, 1.0, False):
            for name, direction in directions.items():
                direction.mul_(1 - align.alpha).sub_(batch[name], alpha=align.alpha)
        for leaf in chosen:  # filters of a convolution, rows of a matrix, single biases
            p, end = leaf.tensor, {4: 2, 2: 1}.get(leaf.tensor.ndim, leaf.tensor.ndim)
            flat, direction = (t.reshape(*t.shape[:end], -1) for t in (p, directions[leaf.name]))
            cosine = torch.cosine_similarity(flat, direction, -1, eps=0).nan_to_num()
            p.mul_(cosine.clamp(align.floor, 1).reshape(*p.shape[:end], *[1] * (p.ndim - end)))


def orthogonalise(weight: Tensor, iterations: int) -> Tensor:
    """A convolution's or linear weight, moved towards an orthogonal matrix; see `Orthogonalise`."""
    outputs, inputs = weight.shape[:2]
    x = weight.reshape(outputs, inputs, -1).permute(2, 0, 1)
    taps = len(x)
    wide = outputs <= inputs
    x = x if wide else x.mT
    x = x / x.flatten(1).norm(dim=1)[:, None, None]
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * (x @ x.mT) @ x
    x = (x if wide else x.mT) * (math.sqrt(outputs / inputs) / taps)
    return x.permute(1, 2, 0).reshape(weight.shape)


def lowest(scores: Values, share: float) -> dict[str, Tensor]:
    """True for the lowest share of all scores; of equal ones the first, in the order given, count as lower."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(stable=True)[: int(share * len(flat) + 1e-6)]] = True
    parts = chosen.split([score.numel() for score in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
