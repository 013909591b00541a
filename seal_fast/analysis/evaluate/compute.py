"""Accuracy, negative log-likelihood, Brier score and calibration error of logits, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from seal_fast.analysis.common.figures import number
from seal_fast.analysis.common.results import percent
from seal_fast.runs.stats import student


def reliability(confidence: np.ndarray, hit: np.ndarray, parts: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Images, mean confidence and share of hits of each part (rows); None where a part is empty."""
    return [
        {
            "images": len(rows),
            "confidence": float(confidence[rows].mean()) if len(rows) else None,
            "accuracy": float(hit[rows].mean()) if len(rows) else None,
        }
        for rows in parts
    ]


def calibration_error(parts: Sequence[dict[str, Any]]) -> float:
    """Expected calibration error: the mean over images of |accuracy - confidence| of their bin."""
    gaps = sum(p["images"] * abs(p["accuracy"] - p["confidence"]) for p in parts if p["images"])
    return gaps / sum(p["images"] for p in parts)


def equal_width(confidence: np.ndarray, bins: int) -> list[np.ndarray]:
    """The rows in each of the bins ((b - 1) / bins, b / bins] (Guo et al., ICML 2017, section 2)."""
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    return [np.flatnonzero(place == b) for b in range(bins)]


def equal_mass(confidence: np.ndarray, bins: int) -> list[np.ndarray]:
    """The rows in bins of as many images each, give or take one, by confidence (Nixon et al., CVPRW 2019)."""
    return np.array_split(np.argsort(confidence, kind="stable"), bins)


def score(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str], bins: int = 15) -> dict[str, Any]:
    """All figures of a split.

    Args:
        logits: float [N, C], finite.
        labels: int [N].

    Returns:
        `figures` by name, each with its interval where it has one: Wilson's of the accuracy, Student's over images of
        the two scores. `bins` of equal width, as `reliability` gives them, and `by_class`: images and top-1 in percent.
    """
    from scipy.special import log_softmax

    logs = log_softmax(logits.astype(np.float64), 1)
    shares, rows = np.exp(logs), np.arange(len(labels))
    predicted = logits.argmax(1)
    confidence, hit = shares[rows, predicted], predicted == labels
    truth = np.zeros_like(shares)
    truth[rows, labels] = 1
    wide = reliability(confidence, hit, equal_width(confidence, bins))
    even = reliability(confidence, hit, equal_mass(confidence, bins))
    own = [hit[labels == label] for label in range(len(classes))]
    return {
        "figures": {
            "top-1 (%)": percent(int(hit.sum()), len(hit)).json(),
            "NLL": student(-logs[rows, labels]).json(),
            "Brier score": student(((shares - truth) ** 2).sum(1)).json(),
            "ECE (%)": number(100 * calibration_error(wide)),
            "adaptive ECE (%)": number(100 * calibration_error(even)),
        },
        "bins": wide,
        "by_class": {
            name: {"images": len(part), "top1": 100 * float(part.mean()) if len(part) else None}
            for name, part in zip(classes, own, strict=True)
        },
    }
