"""What the command computes of one network: the solver, the trace and the density, watched, and what they add up to."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from seal_fast.curvature.estimates import Density, Trace, density, trace
from seal_fast.curvature.lanczos import lanczos
from seal_fast.curvature.operator import HessianOperator
from seal_fast.curvature.power import power
from seal_fast.curvature.ritz import Eigenpairs, NotConverged, Spectrum


@dataclass
class Watcher:
    """Shows the progress on stderr, and passes on a wish to stop after the product in hand.

    visible: whether to show anything (one process of several does). stop: set by a signal.
    """

    visible: bool = True
    stop: int | None = None
    shown: float = field(default_factory=time.monotonic)

    def solver(self, hvps: int, values: Sequence[float], errors: Sequence[float]) -> bool:
        """A solver's progress."""
        scale = max(map(abs, values), default=0.0)
        worst = max((e / max(abs(v), 1e-3 * scale, 1e-300) for v, e in zip(values, errors, strict=True)), default=0.0)
        self._show(f"{hvps} products, {' '.join(f'{v:.4g}' for v in values)}, relative error {worst:.1e}")
        return self.stop is not None

    def estimate(self, what: str):
        """The progress of trace or density."""

        def told(hvps: int) -> bool:
            self._show(f"{what}: {hvps} products")
            return self.stop is not None

        return told

    def _show(self, text: str) -> None:
        if not self.visible:
            return
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.shown > 10:
            self.shown = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def done(self) -> None:
        """End the line."""
        if self.visible and sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@dataclass
class Found:
    """What there is of a network's Hessian; trouble is the reason why the solver did not converge."""

    spectrum: Spectrum
    trace: Trace | None = None
    density: Density | None = None
    trouble: NotConverged | None = None


def measure(
    operator: HessianOperator,
    watcher: Watcher,
    *,
    solver: str = "lanczos",
    top: int = 5,
    bottom: int = 1,
    tol: float = 1e-3,
    max_hvps: int | None = None,
    vectors: bool = False,
    probes: int = 0,
    density_probes: int = 0,
    steps: int = 100,
    seed: int = 0,
) -> Found:
    """Eigenvalues (`top`, `bottom`), the trace from `probes` vectors, the density; 0 of anything leaves it out."""
    found = Found(Spectrum(Eigenpairs(), Eigenpairs(), 0, True))
    if top + bottom:
        limit: dict[str, Any] = {} if max_hvps is None else {"max_hvps": max_hvps}
        start = None  # neither lies in the space of the bottom
        if bottom == 0:
            start = operator.gradient if top == 1 else operator.outlying(seed)
        solve = lanczos if solver == "lanczos" else power
        options = {"tol": tol, "start": start, "vectors": vectors, "seed": seed, "watch": watcher.solver, **limit}
        try:
            found.spectrum = solve(operator, top, bottom, **options)
        except NotConverged as trouble:
            found.spectrum, found.trouble = trouble.spectrum, trouble
    if probes and watcher.stop is None:
        stop = watcher.estimate("trace")
        found.trace = trace(operator, probes, block=operator.block, seed=seed, stop=stop)
    if density_probes and watcher.stop is None:
        found.density = density(operator, density_probes, steps, seed=seed, stop=watcher.estimate("density"))
    watcher.done()
    return found


def describe(operator: HessianOperator, found: Found) -> dict[str, Any]:
    """The figures, as JSON has them."""
    spectrum = found.spectrum
    ends = {"top": spectrum.top, "bottom": spectrum.bottom}
    return {
        **{end: pairs.values for end, pairs in ends.items()},
        "residuals": {end: pairs.residuals for end, pairs in ends.items()},
        "errors": {end: pairs.errors for end, pairs in ends.items()},
        "converged": spectrum.converged,
        "trace": found.trace and found.trace.value,
        "trace_stderr": found.trace and found.trace.stderr,
        "trace_probes": found.trace and found.trace.hvps,
        "density": found.density and {"nodes": found.density.nodes.tolist(), "weights": found.density.weights.tolist()},
        "hvps": operator.hvps,
        "loss_value": operator.loss_value,
        "gradient_norm": float(operator.gradient.norm()),
        "parameters": operator.shape[0],
        "images": operator.images,
        "batchnorm": operator.batchnorm,
        "products": operator.method,
    }
