"""Folders and tars as lists of files."""

import gzip
import io
import os
import tarfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from image_files import tar_of, write

from seal_fast.data.archive import Archive
from seal_fast.utils.errors import RunError, UsageError

CASES = Path(__file__).parent / "cases"


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
    archive = Archive(path)
    assert {name: archive.read(name).tobytes() for name in archive.files} == dict.fromkeys(
        ["x/real.bin", "y/first.bin", "y/hard.bin", "y/soft.bin", "y/twice.bin"], b"abc"
    )
    assert archive.folders == {"x", "y", "z"}
    assert archive.notes == ("left out 3 entries that are neither a file nor a folder, y/dangling.bin first",)


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
    archive = Archive(path)
    assert archive.files == {"a": (512 * 3, 6)} and archive.read("a").tobytes() == b"second"


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
        archive = Archive(path)
        assert [(name, archive.read(name).tobytes()) for name in archive.files] == [
            ("a/y.bin", b"22"), ("a-b/z.bin", b"333"), ("b/x.bin", b"1")
        ]  # fmt: skip
        assert archive.folders == {"a", "a-b", "b"}
        assert archive.notes == ("left out 2 entries that are hidden, .hidden first",)
        assert archive.where("a/y.bin").startswith(str(folder / "a/y.bin") if path == folder else "")


def test_a_single_top_folder_is_the_root_unless_it_is_a_part(tmp_path):
    write(tmp_path / "outer", {"middle/inner/train/x.bin": b"1"})
    assert list(Archive(tmp_path / "outer").files) == ["train/x.bin"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "real", {"a/x.bin": b"1"})
    write(tmp_path / "set", {"b/y.bin": b"2"})
    os.symlink(tmp_path / "real" / "a", tmp_path / "set" / "a")
    os.symlink(tmp_path / "set", tmp_path / "set" / "b" / "up")
    os.symlink(tmp_path / "nothing", tmp_path / "set" / "b" / "gone")
    os.symlink("self", tmp_path / "set" / "b" / "self")
    for path in (tmp_path / "set", tar_of(tmp_path / "set")):
        archive = Archive(path)
        inside = ["a/x.bin", "b/y.bin"] if path.is_dir() else ["y.bin"]  # the tar holds the link to a/, not its files
        assert list(archive.files) == inside
        odd = 2 if path.is_dir() else 4  # in the tar, the links that lead out of it are broken, too
        assert archive.notes[0].startswith(f"left out {odd} entries that are neither a file nor a folder, ")
    assert Archive(tmp_path / "set").notes[1:] == (
        "left out 1 entries that are links to a folder that they lie in, b/up first",
    )


@pytest.mark.parametrize("as_tar", [False, True])
def test_a_link_into_its_own_folder_is_counted_and_the_rest_read(tmp_path, as_tar):
    """As found in the wild: train/a/loop leads to train/, beside links to nothing and a class that is a link."""
    folder = write(tmp_path / "set", {"train/a/0.png": b"1", "val/a/0.png": b"2", "real/1.png": b"3"})
    for link, target in (
        ("train/a/loop", ".."), ("train/a/link.png", "../../real/1.png"), ("train/a/dead.png", "/nonexistent.png"),
        ("train/c", "../real"), ("val/c", "../real"),
    ):  # fmt: skip
        os.symlink(target, folder / link)
    archive = Archive(tar_of(folder) if as_tar else folder)
    assert {name: archive.read(name).tobytes() for name in archive.files} == {
        "real/1.png": b"3", "train/a/0.png": b"1", "train/a/link.png": b"3", "train/c/1.png": b"3", "val/a/0.png": b"2",
        "val/c/1.png": b"3",
    }  # fmt: skip
    assert archive.notes == (
        "left out 1 entries that are neither a file nor a folder, train/a/dead.png first",
        "left out 1 entries that are links to a folder that they lie in, train/a/loop first",
    )


def test_a_mounted_volume_is_read_though_it_repeats_an_inode_number(tmp_path, monkeypatch):
    """The root of a mounted volume may have the inode number of the folder above it, on another device."""
    folder = write(tmp_path / "set", {"a/x.bin": b"1", "volume/y.bin": b"2"})
    scan, inode = os.scandir, os.stat(folder).st_ino

    class Mounted:
        def __init__(self, entry):
            self.name, self.path, self._entry = entry.name, entry.path, entry

        def stat(self):
            status = list(self._entry.stat())
            if self.name == "volume":
                status[1:3] = inode, status[2] + 1
            return os.stat_result(status)

        def __getattr__(self, name):
            return getattr(self._entry, name)

    @contextmanager
    def scandir(path):
        with scan(path) as entries:
            yield [Mounted(entry) for entry in entries]

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(Archive(folder).files) == ["a/x.bin", "volume/y.bin"]


def test_joined_tars_are_read_whole(tmp_path):
    archive = Archive(CASES / "joined.tar")
    assert {name.split("/")[1] for name in archive.files} == {"a", "b", "c", "d"} and len(archive.files) == 16
    junk = tmp_path / "junk.tar"
    junk.write_bytes((CASES / "joined.tar").read_bytes() + b"no header".ljust(512, b"."))
    with pytest.raises(RunError, match="holds no tar header where one is due, at byte 40960"):
        Archive(junk)


def test_of_a_link_and_a_later_file_the_file_counts():
    archive = Archive(CASES / "link-then-file.tar")
    assert archive.files["train/a/0.png"] == (17408, 371) and archive.files["train/b/1.png"][1] == 373


def test_a_hard_link_keeps_what_its_name_meant(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind, data in (("d/a", tarfile.REGTYPE, b"old"), ("d/b", tarfile.LNKTYPE, b""),
                                 ("d/a", tarfile.REGTYPE, b"newer")):  # fmt: skip
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, "d/a" if kind == tarfile.LNKTYPE else "", len(data)
            tar.addfile(entry, io.BytesIO(data))
    archive = Archive(tmp_path / "a.tar")
    assert {name: archive.read(name).tobytes() for name in archive.files} == {"a": b"newer", "b": b"old"}


def test_names_that_are_no_utf8_are_read_and_shown_safely(tmp_path):
    folder = tmp_path / "set"
    (folder / "b").mkdir(parents=True)
    name = os.fsdecode(b"b/b\xe9b.bin")
    (folder / name).write_bytes(b"1")
    (folder / "a.bin").write_bytes(b"2")
    for path in (folder, tar_of(folder)):
        archive = Archive(path)
        assert archive.read(name).tobytes() == b"1"
        assert r"b\xe9b.bin" in archive.where(name) and archive.where(name).encode()


def test_a_negative_size_ends_in_a_sentence(tmp_path):
    entry = tarfile.TarInfo("a").tobuf()
    raw = bytearray(entry)
    raw[124:136] = b"\xff" * 10 + b"\xfc\x00"  # base 256: -1024, which would lead back to this header for ever
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / "a.tar").write_bytes(raw + bytes(1024))
    with pytest.raises(RunError, match="negative size in the entry at byte"):
        Archive(tmp_path / "a.tar")


def test_what_is_no_archive(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: no such file or folder"):
        Archive(tmp_path / "nowhere")
    (tmp_path / "a.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(UsageError, match=r"a\.tar is no \.tar: name a folder or an uncompressed \.tar"):
        Archive(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=r"b\.tar is no \.tar"):
        Archive(tmp_path / "b.tar")
    (tmp_path / "c.tar").write_bytes(gzip.compress(bytes(10240)))
    with pytest.raises(UsageError, match=r"compressed with gzip: .* decompress it once"):
        Archive(tmp_path / "c.tar")


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"cannot read .*locked: Permission denied"):
        Archive(tmp_path / "locked")


@pytest.mark.parametrize("keep", [700, 1024, 1500, 2048, 2200])
def test_truncated_tar_is_refused_wherever_it_is_cut(tmp_path, keep):
    tar = tar_of(write(tmp_path / "set", {"a.bin": b"x" * 600, "b.bin": b"y" * 600}))
    assert len(Archive(tar).files) == 2
    tar.write_bytes(tar.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"set\.tar is truncated"):
        Archive(tar)


def test_damaged_header_is_refused_with_its_place(tmp_path):
    tar = tar_of(write(tmp_path / "set", {"a.bin": b"x" * 600, "b.bin": b"y" * 600}))
    data = bytearray(tar.read_bytes())
    header = Archive(tar).files["b.bin"][0] - 512
    for place, message in (
        (header, f"bad checksum in the entry at byte {header - 1024}"),  # whose extended header is whole
        (header - 1024, f"holds no tar header where one is due, at byte {header - 1024}"),
    ):
        data[place + 3] ^= 1
        tar.write_bytes(data)
        with pytest.raises(RunError, match=message):
            Archive(tar)


def test_a_file_that_shrinks_is_named(tmp_path):
    folder = write(tmp_path / "set", {"a.bin": b"12345", "b.bin": b"1"})
    archive = Archive(folder)
    Path(folder / "a.bin").write_bytes(b"1")
    with pytest.raises(RunError, match=r"a\.bin has become shorter"):
        archive.read("a.bin")
    Path(folder / "b.bin").unlink()
    with pytest.raises(RunError, match=r"cannot read .*b\.bin: No such file"):
        archive.read("b.bin")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, form):
    """Longer than the 100 bytes that a header has for a name: each format has its own way around."""
    long = "/".join(["a" * 70, "b" * 70, "c" * 70])
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for name in (long, "x/short"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(name[:3].encode()))
    archive = Archive(tmp_path / "a.tar")
    assert {name: archive.read(name).tobytes() for name in archive.files} == {long: b"aaa", "x/short": b"x/s"}


def test_a_cut_within_a_file_names_it(tmp_path):
    tar = tar_of(write(tmp_path / "set", {"a.bin": b"x" * 600, "b.bin": b"y" * 2000}))
    start = Archive(tar).files["b.bin"][0]
    tar.write_bytes(tar.read_bytes()[: start + 700])
    with pytest.raises(RunError, match=f"set/b.bin should end at byte {start + 2000}, the file ends at {start + 700}"):
        Archive(tar)


@pytest.mark.parametrize("record", [b"0 path=x\n", b"-3 path=x\n", b"path=x\n", b"x path=x\n"])
def test_a_damaged_extended_header_is_refused(tmp_path, record):
    entry = tarfile.TarInfo("PaxHeader")
    entry.type, entry.size = tarfile.XHDTYPE, len(record)
    raw = entry.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + bytes(1024)
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(RunError, match="a.tar is truncated or damaged"):
        Archive(tmp_path / "a.tar")
