"""Data sets whose labels are a table of comma-separated values: ISIC 2018 task 3 (HAM10000), ChestX-ray8."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from seal_fast.data.prepare.images import Label
from seal_fast.data.prepare.sources import Sources
from seal_fast.utils.errors import RunError, UsageError

_COLUMNS = {"image"}, {"image_id", "dx"}, {"Image Index", "Finding Labels"}
_CHESTX = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax")


def isic(sources: Sources) -> Iterator[Label]:
    """ISIC 2018 task 3, its training part (Codella et al., 2019), by one of two tables.

    ISIC2018_Task3_Training_GroundTruth.csv has a column a class, one of them 1; HAM10000_metadata has the class in dx.
    """
    table, rows = _table(sources, r"ISIC2018_Task3_Training_GroundTruth\.csv|HAM10000_metadata(\.csv)?")
    for row in rows:
        if table.startswith("HAM"):
            image, hot = row["image_id"], [row["dx"].upper()]
        else:
            image, hot = row.pop("image"), [name for name, value in row.items() if value not in ("0", "0.0")]
        if len(hot) != 1:
            raise RunError(f"{table}: {image} has {len(hot)} classes instead of one")
        yield Label(f"{image}.jpg", "", hot[0])


def chestx(sources: Sources) -> Iterator[Label]:
    """ChestX-ray8 (Wang et al., CVPR 2017) as cross-domain few-shot learning uses it (CDFSL, Guo et al., ECCV 2020).

    Images with exactly one finding, if it is one of seven classes; the released code of CDFSL leaves out pneumonia.
    """
    _, rows = _table(sources, r"Data_Entry_2017.*\.csv")
    for row in rows:
        if row["Finding Labels"] in _CHESTX:
            yield Label(row["Image Index"], "", row["Finding Labels"])


def _table(sources: Sources, pattern: str) -> tuple[str, Iterator[dict[str, str]]]:
    """The name and the rows of the first file whose name fits.

    Raises:
        UsageError: there is none.
        RunError: it has other columns.
    """
    for member, content in sources.members():
        if re.fullmatch(pattern, name := member.rpartition("/")[2]):
            rows = csv.DictReader(io.StringIO(content.read().decode("utf-8-sig")))
            columns = set(rows.fieldnames or ())
            if not any(known <= columns for known in _COLUMNS):
                raise RunError(f"{name} has other columns than the official table ({', '.join(sorted(columns))})")
            return name, rows
    raise UsageError(f"none of {sources} is or holds the table of labels: name it too")
