import errno
import json
import math

import pytest

from seal_fast.utils.errors import RunError
from seal_fast.utils.files import write_atomically, write_json, write_text


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path):
    path = tmp_path / "f.txt"
    write_text(path, "old")

    def fill_the_disk(temporary):
        temporary.write_text("half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"f.txt could not be written \(No space left on device\).* intact"):
        write_atomically(path, fill_the_disk)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]


def test_a_defect_is_not_dressed_up_as_a_full_disk(tmp_path):
    def defect(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "f", defect)


def test_safetensors_own_error_counts_as_the_systems(tmp_path):
    import torch

    from seal_fast.training.checkpoint import save_tensors

    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="could not be written"):
        save_tensors(blocked / "x.safetensors", {"a": torch.zeros(2)}, {})


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.nan, math.inf, 1.5], "b": "t"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, None, 1.5], "b": "t"}
