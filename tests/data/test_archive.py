"""Folders and tars as lists of files; the standard library's tarfile is the truth for the index."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import tar_of, write

from seal_fast.data.archive import Container
from seal_fast.data.tar_index import index_tar
from seal_fast.utils.errors import RunError, UsageError

part = st.text(st.sampled_from("abcXYZ019_- é漢"), min_size=1, max_size=60).filter(lambda text: text.strip())
names = st.lists(st.lists(part, min_size=1, max_size=4).map("/".join), min_size=1, max_size=8, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    names=names,
    sizes=st.lists(st.sampled_from([0, 1, 511, 512, 513, 3000]), min_size=8, max_size=8),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_index_equals_tarfile(tmp_path_factory, names, sizes, form):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, size in zip(names, sizes, strict=False):
            entry = tarfile.TarInfo(name)
            entry.size = size
            try:
                tar.addfile(entry, io.BytesIO(bytes([size % 251]) * size))
            except ValueError:  # a name too long for ustar
                continue
    with tarfile.open(path) as tar:
        expected = {m.name: (m.offset_data, m.size) for m in tar if m.isfile()}
    with open(path, "rb") as file:
        assert index_tar(file.fileno(), path)[0] == expected


def test_links_and_odd_entries(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:

        def add(name, kind, target=""):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)

        file = tarfile.TarInfo("x/real.bin")
        file.size = 3
        tar.addfile(file, io.BytesIO(b"abc"))
        add("y/first.bin", tarfile.SYMTYPE, "twice.bin")
        add("y/hard.bin", tarfile.LNKTYPE, "x/real.bin")
        add("y/soft.bin", tarfile.SYMTYPE, "../x/real.bin")
        add("y/twice.bin", tarfile.SYMTYPE, "soft.bin")
        add("y/dangling.bin", tarfile.SYMTYPE, "nowhere")
        add("y/loop.bin", tarfile.SYMTYPE, "loop.bin")
        add("y/pipe", tarfile.FIFOTYPE)
        add("z", tarfile.DIRTYPE)
    container = Container(path)
    assert {name: container.read(name).tobytes() for name in container.files} == dict.fromkeys(
        ["x/real.bin", "y/first.bin", "y/hard.bin", "y/soft.bin", "y/twice.bin"], b"abc"
    )
    assert container.folders == {"x", "y", "z"}
    assert container.notes == ("left out 3 entries that are neither a file nor a folder, y/dangling.bin first",)


def test_base_256_numbers_and_the_last_of_two_entries(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for data in (b"first", b"second"):
            entry = tarfile.TarInfo("d/a")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    raw = bytearray(path.read_bytes())
    raw[124:136] = b"\x80" + (5).to_bytes(11, "big")  # the size of the first entry
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    path.write_bytes(raw)
    container = Container(path)
    assert container.files == {"a": (512 * 3, 6)} and container.read("a").tobytes() == b"second"


def test_folder_and_tars_list_the_same(tmp_path):
    files = {
        "b/x.bin": b"1",
        "a/y.bin": b"22",
        "a-b/z.bin": b"333",
        ".hidden/q/r": b"4",
        ".hidden/s": b"4",
        "a/.DS_Store": b"5",
    }
    folder = write(tmp_path / "set", files)
    for path in (folder, tar_of(folder), tar_of(folder, top=False)):
        container = Container(path)
        assert [(name, container.read(name).tobytes()) for name in container.files] == [
            ("a/y.bin", b"22"), ("a-b/z.bin", b"333"), ("b/x.bin", b"1")
        ]  # fmt: skip
        assert container.folders == {"a", "a-b", "b"}
        assert container.notes == ("left out 2 entries that are hidden, .hidden first",)
        assert container.where("a/y.bin").startswith(str(folder / "a/y.bin") if path == folder else "")


def test_a_single_top_folder_is_the_root_unless_it_is_a_part(tmp_path):
    write(tmp_path / "outer", {"middle/inner/train/x.bin": b"1"})
    assert list(Container(tmp_path / "outer").files) == ["train/x.bin"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "real", {"a/x.bin": b"1"})
    write(tmp_path / "set", {"b/y.bin": b"2"})
    os.symlink(tmp_path / "real" / "a", tmp_path / "set" / "a")
    os.symlink(tmp_path / "set", tmp_path / "set" / "b" / "up")
    os.symlink(tmp_path / "nothing", tmp_path / "set" / "b" / "gone")
    container = Container(tmp_path / "set")
    assert list(container.files) == ["a/x.bin", "b/y.bin"]
    assert container.notes == ("left out 1 entries that are neither a file nor a folder, b/gone first",)


def test_what_is_no_container(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder"):
        Container(tmp_path / "nowhere")
    (tmp_path / "a.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(UsageError, match=r"a\.tar is no \.tar: name a folder or an uncompressed \.tar"):
        Container(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=r"b\.tar is no \.tar"):
        Container(tmp_path / "b.tar")
    (tmp_path / "c.tar").write_bytes(gzip.compress(bytes(10240)))
    with pytest.raises(UsageError, match=r"compressed with gzip: .* decompress it once"):
        Container(tmp_path / "c.tar")


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"cannot read .*locked: Permission denied"):
        Container(tmp_path / "locked")


@pytest.mark.parametrize("keep", [700, 1024, 1500, 2048, 2200])
def test_truncated_tar_is_refused_wherever_it_is_cut(tmp_path, keep):
    tar = tar_of(write(tmp_path / "set", {"a.bin": b"x" * 600, "b.bin": b"y" * 600}))
    assert len(Container(tar).files) == 2
    tar.write_bytes(tar.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"set\.tar is truncated"):
        Container(tar)


def test_damaged_header_is_refused_with_its_place(tmp_path):
    tar = tar_of(write(tmp_path / "set", {"a.bin": b"x" * 600, "b.bin": b"y" * 600}))
    data = bytearray(tar.read_bytes())
    header = Container(tar).files["b.bin"][0] - 512
    data[header + 3] ^= 1
    tar.write_bytes(data)
    with pytest.raises(RunError, match=f"holds no tar header where one is due, at byte {header}"):
        Container(tar)


def test_a_file_that_shrinks_is_named(tmp_path):
    folder = write(tmp_path / "set", {"a.bin": b"12345", "b.bin": b"1"})
    container = Container(folder)
    Path(folder / "a.bin").write_bytes(b"1")
    with pytest.raises(RunError, match=r"a\.bin has become shorter"):
        container.read("a.bin")
    Path(folder / "b.bin").unlink()
    with pytest.raises(RunError, match=r"cannot read .*b\.bin: No such file"):
        container.read("b.bin")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, form):
    """Longer than the 100 bytes that a header has for a name: each format has its own way around."""
    long = "/".join(["a" * 70, "b" * 70, "c" * 70])
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for name in (long, "x/short"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(name[:3].encode()))
    container = Container(tmp_path / "a.tar")
    assert {name: container.read(name).tobytes() for name in container.files} == {long: b"aaa", "x/short": b"x/s"}


def test_a_cut_within_a_file_names_it(tmp_path):
    tar = tar_of(write(tmp_path / "set", {"a.bin": b"x" * 600, "b.bin": b"y" * 2000}))
    start = Container(tar).files["b.bin"][0]
    tar.write_bytes(tar.read_bytes()[: start + 700])
    with pytest.raises(RunError, match=f"set/b.bin should end at byte {start + 2000}, the file ends at {start + 700}"):
        Container(tar)


@pytest.mark.parametrize("record", [b"0 path=x\n", b"-3 path=x\n", b"path=x\n", b"x path=x\n"])
def test_a_damaged_extended_header_is_refused(tmp_path, record):
    entry = tarfile.TarInfo("PaxHeader")
    entry.type, entry.size = tarfile.XHDTYPE, len(record)
    raw = entry.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + bytes(1024)
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(RunError, match="unreadable extended tar header at byte 512"):
        Container(tmp_path / "a.tar")
