"""The Hessian of one network: eigenvalues, trace and density, with their progress, and their entries in the result."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from seal_fast.curvature.estimates import Density, Trace, density, trace
from seal_fast.curvature.lanczos import lanczos
from seal_fast.curvature.operator import HessianOperator
from seal_fast.curvature.power import power
from seal_fast.curvature.ritz import Eigenpairs, NotConverged, Spectrum
from seal_fast.utils.errors import UsageError


def check_solver(flags: argparse.Namespace) -> None:
    """Raise a UsageError for --tol or --label-smoothing out of range."""
    if not 0 < flags.tol < 1:
        raise UsageError(f"--tol {flags.tol}: must be above 0 and below 1")
    if flags.label_smoothing is not None and not 0 <= flags.label_smoothing < 1:
        raise UsageError(f"--label-smoothing {flags.label_smoothing}: must be at least 0 and below 1")


@dataclass
class Watcher:
    """Shows the progress on stderr and stops the solvers after a signal.

    Attributes:
        visible: whether to show anything; one process of several does.
        stop: the signal's number.
    """

    visible: bool = True
    stop: int | None = None
    shown: float = field(default_factory=time.monotonic)

    def solver(self, hvps: int, values: Sequence[float], errors: Sequence[float]) -> bool:
        """For a solver's `watch`."""
        scale = max(map(abs, values), default=0.0)
        worst = max((e / max(abs(v), 1e-3 * scale, 1e-300) for v, e in zip(values, errors, strict=True)), default=0.0)
        self._show(f"{hvps} products, {' '.join(f'{v:.4g}' for v in values)}, relative error {worst:.1e}")
        return self.stop is not None

    def estimate(self, what: str):
        """For the `stop` of trace or density."""

        def stop(hvps: int) -> bool:
            self._show(f"{what}: {hvps} products")
            return self.stop is not None

        return stop

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
class Figures:
    """The results for a network; trouble is the error of a solver that did not converge."""

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
) -> Figures:
    """Compute eigenvalues (`top`, `bottom`), trace (`probes`) and density; a number of 0 leaves one out."""
    figures = Figures(Spectrum())
    if top + bottom:
        limit: dict[str, Any] = {} if max_hvps is None else {"max_hvps": max_hvps}
        start = None  # for the bottom neither of the two would help
        if bottom == 0:
            start = operator.gradient if top == 1 else operator.outlying(seed)
        solve = lanczos if solver == "lanczos" else power
        keep = vectors or bool(probes)  # the trace is deflated by them
        options = {"tol": tol, "start": start, "vectors": keep, "seed": seed, "watch": watcher.solver, **limit}
        try:
            figures.spectrum = solve(operator, top, bottom, **options)
        except NotConverged as trouble:
            figures.spectrum, figures.trouble = trouble.spectrum, trouble
    if probes and watcher.stop is None:
        stop = watcher.estimate("trace")
        known = _one_subspace(figures.spectrum, solver)
        figures.trace = trace(operator, probes, known=known, block=operator.block, seed=seed, stop=stop)
    if density_probes and watcher.stop is None:
        figures.density = density(operator, density_probes, steps, seed=seed, stop=watcher.estimate("density"))
    watcher.done()
    return figures


def _one_subspace(spectrum: Spectrum, solver: str) -> Eigenpairs:
    """The eigenpairs whose vectors are orthonormal: both ends by Lanczos, one end by power iteration."""
    ends = [end for end in (spectrum.top, spectrum.bottom) if end.vectors is not None]
    ends = ends if solver == "lanczos" else ends[:1]
    vectors = [end.vectors for end in ends if end.vectors is not None]
    return Eigenpairs([value for end in ends for value in end.values], vectors=torch.cat(vectors) if ends else None)


def describe(operator: HessianOperator, figures: Figures) -> dict[str, Any]:
    """The entries of a result file."""
    spectrum = figures.spectrum
    ends = {"top": spectrum.top, "bottom": spectrum.bottom}
    return {
        **{end: pairs.values for end, pairs in ends.items()},
        "residuals": {end: pairs.residuals for end, pairs in ends.items()},
        "errors": {end: pairs.errors for end, pairs in ends.items()},
        "converged": spectrum.converged,
        "trace": figures.trace and figures.trace.value,
        "trace_stderr": figures.trace and figures.trace.stderr,
        "trace_half": figures.trace and figures.trace.half,
        "trace_probes": figures.trace and figures.trace.probes,
        "trace_known": figures.trace and figures.trace.known,
        "density": figures.density
        and {"nodes": figures.density.nodes.tolist(), "weights": figures.density.weights.tolist()},
        "hvps": operator.hvps,
        "loss_value": operator.loss_value,
        "gradient_norm": float(operator.gradient.norm()),
        "parameters": operator.shape[0],
        "images": operator.images,
        "batchnorm": operator.batchnorm,
        "products": operator.method,
    }
