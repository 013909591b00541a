"""Data sets whose folders are the classes: EuroSAT, and the plant diseases of CDFSL."""

from __future__ import annotations

from collections.abc import Iterator

from seal_fast.data.layouts.common import is_image
from seal_fast.data.prepare.images import Label
from seal_fast.data.prepare.sources import Sources


def eurosat(sources: Sources) -> Iterator[Label]:
    """EuroSAT, the RGB version (Helber et al., 2019): CLASS/FILE in one folder; there is no official split."""
    for member, _ in sources.members():
        if is_image(member) and "/" in member:
            folder, file = member.split("/")[-2:]
            yield Label(f"{folder}/{file}", "", folder)


def cropdisease(sources: Sources) -> Iterator[Label]:
    """Plant diseases (Mohanty et al., 2016) as CDFSL uses them: dataset/{train,test}/CLASS/FILE."""
    for member, _ in sources.members():
        parts = member.split("/")[-3:]
        if is_image(member) and len(parts) == 3 and parts[0] in ("train", "test"):
            yield Label("/".join(parts), parts[0], parts[1])
