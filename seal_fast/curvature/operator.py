"""The Hessian of a network's mean loss over fixed batches, as a linear operator."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seal_fast.curvature.double_backward import DoubleBackward, Loss
from seal_fast.curvature.r_operator.products import ROperator
from seal_fast.models import ResNet
from seal_fast.utils.errors import RunError, UsageError


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Float32 products without TF32, which training allows on a GPU and whose rounding exceeds the residuals."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


class HessianOperator:
    """The Hessian of  (1 / N) sum over images of the loss  with respect to a model's parameters, or to some of them.

    The model runs in eval mode, whatever its own mode, which it keeps; the value then does not depend on how the images
    are split into batches. Batches must be the same each time they are read. The products share what the passes at the
    point itself compute: it is cached for the first batches, as far as `cache_bytes` allows, and computed anew for the
    others, so memory does not grow with their number.

    Args:
        model: the network. Its parameters must not change while the operator is in use.
        loss: (model(images), labels) to the mean loss of the batch, twice differentiable.
        batches: (images, labels) pairs, to be read more than once: a list, or a DataLoader without shuffling.
        names: parameters of the Hessian's block, default all; rows and columns follow this order.
        batchnorm: "eval" (running statistics; the default), or "train": each batch's own statistics. Then the value
            depends on the batch split; running statistics do not change.
        method: "r-operator" (seal_fast's ResNets in eval mode), "double-backward" (any model), or "auto".
        reduce: adds a tensor up over processes in place, where each has a part of the batches.

    Attributes:
        shape: (n, n), n the parameters in the block.
        method: the name of the method in use.
        images: N, of all processes.
        loss_value: the mean loss at the point.
        gradient: its gradient, float64 [n].
        hvps: products computed so far.

    Raises:
        UsageError: there is no batch or no such parameter, or a batch changed between two readings.
        RunError: the loss, its gradient or a product is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[tuple[Any, Any]],
        names: Sequence[str] | None = None,
        *,
        batchnorm: Literal["eval", "train"] = "eval",
        method: Literal["auto", "r-operator", "double-backward"] = "auto",
        cache_bytes: float = 2 << 30,
        reduce: Callable[[Tensor], Any] | None = None,
    ) -> None:
        parameters = dict(model.named_parameters())
        self.names = list(parameters) if names is None else list(names)
        if unknown := [name for name in self.names if name not in parameters]:
            raise UsageError(f"the model has no parameter called {unknown[0]}")
        if not self.names:
            raise UsageError("the Hessian of no parameters was asked for: name some")
        if iter(batches) is batches:
            raise UsageError("the batches are an iterator, which can be read only once: pass a list of them")
        fits = type(model) is ResNet and batchnorm == "eval"
        if method == "r-operator" and not fits:
            raise UsageError("the R-operator is for seal_fast's ResNets in eval mode: choose double-backward")
        self.batches, self.batchnorm = batches, batchnorm
        self._reduce = reduce or (lambda tensor: tensor)
        self._shapes = [parameters[name].shape for name in self.names]
        self.dtype, self.device = parameters[self.names[0]].dtype, parameters[self.names[0]].device
        if isinstance(model, ResNet) and fits and method != "double-backward":
            self._products = ROperator(model, loss, self.names)
        else:
            self._products = DoubleBackward(model, loss, self.names, batchnorm == "train")
        self.method = self._products.name
        self.hvps, self._cache_bytes = 0, cache_bytes
        self._record(cache_bytes)

    def part(self, names: Sequence[str]) -> HessianOperator:
        """The block of some of the parameters; with the R-operator it shares the tapes of this operator."""
        products = self._products
        if not isinstance(products, ROperator):
            settings: dict[str, Any] = {"batchnorm": self.batchnorm, "method": "double-backward"}
            settings |= {"cache_bytes": self._cache_bytes, "reduce": self._reduce}
            self._cache.clear()  # graphs of the whole are of no use to a part, and memory is for one cache
            return HessianOperator(products.model, products.loss, self.batches, names, **settings)
        found, gradient = copy.copy(self), self.by_name(self.gradient[None])
        found.names, found.hvps, found._products = list(names), 0, products.part(names)
        found._shapes = [gradient[name][0].shape for name in names]
        found.gradient = torch.cat([gradient[name].flatten() for name in names])
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        n = sum(shape.numel() for shape in self._shapes)
        return n, n

    @property
    def block(self) -> int:
        """How many vectors to multiply at once: one fills a CPU, but not a GPU."""
        return 1 if self.device.type == "cpu" else 8

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Products with [n] or with the columns of [n, m], in float64; the m columns go through the network at once."""
        if vectors.shape[0] != self.shape[0] or vectors.dim() not in (1, 2):
            raise ValueError(f"a vector of {self.shape[0]} entries, or columns of as many, not {tuple(vectors.shape)}")
        if vectors.dim() == 1:
            return self.multiply(vectors[None])[0]
        return self.multiply(vectors.T).T

    @torch.no_grad()
    @full_float32()
    def multiply(self, rows: Tensor) -> Tensor:
        """Products with the rows of [m, n], float64 [m, n]: one pass over the batches.

        Raises:
            RunError: a product is not finite.
        """
        products = self._products.multiply(self._tapes(), self.by_name(rows.to(self.device)))
        flat = torch.empty(rows.shape, dtype=torch.float64, device=self.device)
        for name, part in self.by_name(flat).items():
            part.copy_(products[name])
        self._reduce(flat)
        self.hvps += len(rows)
        if not torch.isfinite(flat.sum()):
            raise RunError("a Hessian-vector product is NaN or infinite: the activations overflow; try --dtype float64")
        return flat.div_(self.images)

    @torch.no_grad()
    @full_float32()
    def outlying(self, seed: int = 0) -> Tensor:
        """A random vector, float64 [n], mostly in the span of the eigenvectors of the large eigenvalues.

        These come from the Gauss-Newton part of the Hessian, the sum of J^T A J (Papyan, ICML 2019): the result is the
        sum of J^T A xi for a random xi, at the cost of one backward pass. Double backward returns the gradient instead,
        which lies in that span too but may lack some of them.
        """
        if not isinstance(self._products, ROperator):
            return self.gradient
        parts = self._products.outlying(self._tapes(), torch.Generator().manual_seed(seed))
        flat = torch.cat([parts[name].flatten() for name in self.names])
        self._reduce(flat)
        return flat / self.images

    def by_name(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows [m, n] as parameter-shaped tensors [m, ...] by name."""
        parts = rows.split([shape.numel() for shape in self._shapes], 1)
        return {n: p.unflatten(1, s) for n, p, s in zip(self.names, parts, self._shapes, strict=True)}

    def to_scipy(self) -> Any:
        """This operator as a scipy.sparse.linalg.LinearOperator of float64."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        def product(x: Any) -> Any:
            return (self @ torch.as_tensor(np.ascontiguousarray(x, dtype=np.float64))).cpu().numpy()

        return LinearOperator(
            self.shape,
            matvec=lambda x: product(x.reshape(-1)),  # pyright: ignore[reportCallIssue]
            matmat=product,  # pyright: ignore[reportCallIssue]
            rmatvec=lambda x: product(x.reshape(-1)),  # pyright: ignore[reportCallIssue]
            dtype=np.float64,  # pyright: ignore[reportCallIssue]
        )

    @torch.no_grad()
    @full_float32()
    def _record(self, cache_bytes: float) -> None:
        """Read all batches once: loss, gradient, and the tapes that fit into the cache."""
        self._cache: list[Any] = []
        self._losses: list[float] = []  # of each batch
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        room = cache_bytes
        for images, labels in self.batches:
            tape = self._products.record(images, labels)
            self._losses.append(tape.loss)
            sums += torch.tensor([tape.loss * tape.count, tape.count], dtype=torch.float64, device=self.device)
            room -= tape.nbytes
            if room >= 0:
                self._cache.append(tape)
        self._reduce(sums)
        loss, count = sums.tolist()
        self.images = int(count)
        if not self.images:
            raise UsageError("there are no images to compute the loss on: pass at least one batch")
        gradient = self._products.gradient()
        self.gradient = torch.cat([gradient[name].flatten() for name in self.names])
        self._reduce(self.gradient)
        self.gradient /= self.images
        self.loss_value = loss / self.images
        if not (abs(self.loss_value) < float("inf") and torch.isfinite(self.gradient).all()):
            raise RunError("the loss or its gradient is NaN or infinite: these weights have diverged")

    def _tapes(self) -> Iterable[Any]:
        """The cached tapes, then those of the other batches, read again."""
        yield from self._cache
        if len(self._cache) == len(self._losses):
            return
        count = 0
        for images, labels in self.batches:
            if count >= len(self._cache):
                tape = self._products.record(images, labels, accumulate=False)
                self._compare(count, tape.loss)
                yield tape
            count += 1
        self._compare(count, None)

    def _compare(self, i: int, loss: float | None) -> None:
        """Refuse a batch whose loss is not what it was when first read; None stands for a missing batch."""
        first = self._losses[i] if i < len(self._losses) else None
        if first is None or loss is None:
            same = first is loss
        else:
            same = abs(loss - first) <= 1000 * torch.finfo(self.dtype).eps * max(abs(loss), abs(first))
        if not same:
            raise UsageError(
                f"the loss of batch {i} was {first} when first read and is {loss} now: batches must be the same each "
                "time (a loader that shuffles or augments? pass a list of batches) and the loss without dropout"
            )
