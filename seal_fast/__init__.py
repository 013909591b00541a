"""seal_fast: a fast training engine for SEAL and its rivals."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seal_fast.training.annealer import Annealer as Annealer

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # importing the package alone imports no torch
    if name == "Annealer":
        from seal_fast.training.annealer import Annealer

        return Annealer
    raise AttributeError(f"module 'seal_fast' has no attribute {name!r}")
