"""The layouts a data set may have: each module says whether a container has it, and reads its names and labels.

A layout is a module with NAME, DESCRIPTION (for messages), `matches(container)` and `read(container, faults)`.
"""

from __future__ import annotations

from types import ModuleType

from seal_fast.data.archive import Container
from seal_fast.data.layouts import idx, image_folder, tiny_imagenet
from seal_fast.utils.errors import UsageError

KNOWN: tuple[ModuleType, ...] = (tiny_imagenet, idx, image_folder)


def layout_of(container: Container) -> ModuleType:
    """The layout that a container has.

    Raises:
        UsageError: none of the known ones, which the message lists.
    """
    for layout in KNOWN:
        if layout.matches(container):
            return layout
    found = ", ".join(sorted({name.partition("/")[0] for name in container.files})[:5]) or "nothing"
    known = "; ".join(layout.DESCRIPTION for layout in KNOWN)
    raise UsageError(f"{container.path} holds no known layout (found: {found}); known layouts: {known}")
