import errno
import json
import math
import os
import stat

import pytest

from seal_fast.utils import files
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.files import locked, read_tensors, read_text, write_atomically, write_json, write_text


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


def failing(monkeypatch, function, number, only=lambda *_: True):
    """Make a function of the operating system fail, as some file systems do."""
    module, name = function
    original = getattr(module, name)

    def fail(*args):
        if only(*args):
            raise OSError(number, os.strerror(number))
        return original(*args)

    monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_noted(number, tmp_path, monkeypatch, caplog):
    failing(monkeypatch, (files.fcntl, "flock"), number)
    with locked(tmp_path / "run", "taken"):
        pass
    assert "cannot be locked" in caplog.text and "start no second process" in caplog.text


def test_a_lock_that_another_holds_or_that_fails_is_refused(tmp_path, monkeypatch):
    with locked(tmp_path, "taken"), pytest.raises(UsageError, match="taken"), locked(tmp_path, "taken"):
        pass
    failing(monkeypatch, (files.fcntl, "flock"), errno.EIO)
    with pytest.raises(UsageError, match=r"cannot be locked \(Input/output error\)"), locked(tmp_path, "taken"):
        pass


def test_a_folder_that_cannot_be_flushed_is_written_all_the_same(tmp_path, monkeypatch):
    failing(monkeypatch, (files.os, "fsync"), errno.EINVAL, lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode))
    write_text(tmp_path / "f", "x")
    assert (tmp_path / "f").read_text() == "x"
    failing(monkeypatch, (files.os, "fsync"), errno.EIO)
    with pytest.raises(RunError, match="Input/output error"):
        write_text(tmp_path / "f", "y")
    assert (tmp_path / "f").read_text() == "x"


def test_tensors_are_read_where_there_is_no_mmap(tmp_path, monkeypatch):
    import safetensors
    import torch
    from safetensors.torch import save_file

    path, tensors = tmp_path / "t.safetensors", {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2).bfloat16()}
    save_file(tensors, path, {"k": "v"})

    def no_mmap(*_):
        raise safetensors.SafetensorError("Error while deserializing: I/O error: No such device (os error 19)")

    expected = read_tensors(path)
    monkeypatch.setattr(safetensors, "safe_open", no_mmap)
    found, metadata = read_tensors(path)
    assert metadata == expected[1] == {"k": "v"} and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_text_is_utf8_whatever_the_locale_and_the_name(tmp_path):
    write_text(tmp_path / "t", "café \udcff")
    assert (tmp_path / "t").read_bytes() == b"caf\xc3\xa9 \xff"
    assert read_text(tmp_path / "t") == "café \udcff"
