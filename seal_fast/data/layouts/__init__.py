"""The layouts a data set may have: each module says whether an archive has it, and reads its names and labels.

A layout is a module with NAME, DESCRIPTION (for messages), `matches(archive)` and `read(archive, faults)`.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

from seal_fast.data.archive import Archive
from seal_fast.data.layouts import idx, image_folder, shards, tiny_imagenet
from seal_fast.data.layouts.common import Contents, Faults, other_files
from seal_fast.utils.errors import UsageError
from seal_fast.utils.terminal import shown

KNOWN: tuple[ModuleType, ...] = (tiny_imagenet, idx, image_folder)


def read_layout(archive: Archive, faults: Faults, split_seed: int | None = None) -> tuple[str, Contents]:
    """The name of the layout that an archive has, and what it reads; `split_seed` as for `open_images`.

    Raises:
        UsageError: none of the known layouts, which the message lists; or no split, and no seed to split by.
        RunError: the data are damaged.
    """
    for layout in KNOWN:
        if layout.matches(archive):
            return layout.NAME, layout.read(archive, faults)
    if paths := shards.inside(archive):
        layout, contents = shards.read(paths, faults, split_seed)
        others = other_files(archive, ("",), known=paths[0].suffix) if archive.path.is_dir() else ()
        return layout, replace(contents, notes=contents.notes + others)
    found = shown(", ".join(sorted({name.partition("/")[0] for name in archive.files})[:5])) or "nothing"
    if image_folder.has_no_split(archive):
        if split_seed is not None:
            return image_folder.NAME, image_folder.read_pool(archive, faults, split_seed)
        raise UsageError(
            f"{archive.path} holds class folders ({found}) and no split: training needs train/CLASS/* and val/CLASS/*, "
            "so sort the images into these; only fewshot and transfer take class folders as they are"
        )
    known = "; ".join(layout.DESCRIPTION for layout in (*KNOWN, shards))
    raise UsageError(f"{archive.path} holds no known layout (found: {found}); known layouts: {known}")
