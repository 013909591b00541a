"""`prepare`, against a server in this process: resuming, checksum, counts, and what it says when it cannot."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from image_files import tiny_imagenet_files

from seal_fast.data import open_images
from seal_fast.data.prepare import main
from seal_fast.data.prepare import prepare as prepare_any
from seal_fast.data.prepare.download import DOWNLOADS, Download
from seal_fast.utils.errors import RunError, UsageError


def zipped(files, folder="tiny-imagenet-200"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.mkdir(folder)
        for name, data in files.items():
            archive.writestr(f"{folder}/{name}", data)
    return file.getvalue()


def prepare(name, folder, official=None):
    return prepare_any(name, (), folder, _official=official)


class Server(HTTPServer):
    """Serves `data` at any path; breaks off after `breaks` bytes of each answer, and knows Range if `ranges`."""

    data, breaks, ranges, asked = b"", None, True, None


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked.split("=")[1].rstrip("-")) if asked and server.ranges else 0
        if start >= len(server.data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.data) - start))
        self.end_headers()
        self.wfile.write(server.data[start:][: server.breaks])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.data, server.asked = zipped(tiny_imagenet_files()), []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(server):
    url = f"http://127.0.0.1:{server.server_port}/a.zip"
    return Download(url, hashlib.md5(server.data).hexdigest(), "tiny-imagenet-200", classes=3, train_each=3, val_each=2)


def test_it_makes_a_tar_that_opens(tmp_path, archive):
    tar = prepare("tiny-imagenet", tmp_path / "data", archive)
    assert tar == tmp_path / "data" / "tiny-imagenet-200.tar"
    images = open_images(tar)
    files = tiny_imagenet_files()
    assert images.layout == "tiny-imagenet" and len(images.train) == 9
    for row, name in enumerate(images.train.names):
        assert images.train.source.read(row).tobytes() == files[name]
    assert sorted(path.name for path in tar.parent.iterdir()) == ["tiny-imagenet-200.tar", "tiny-imagenet-200.zip"]


def test_a_second_call_downloads_nothing(tmp_path, archive, server):
    prepare("tiny-imagenet", tmp_path, archive)
    (tmp_path / "tiny-imagenet-200.zip").unlink()
    server.asked.clear()
    prepare("tiny-imagenet", tmp_path, archive)
    assert server.asked == []


def test_a_connection_that_breaks_off_is_resumed(tmp_path, archive, server):
    server.breaks = len(server.data) // 3 + 1
    prepare("tiny-imagenet", tmp_path, archive)
    assert server.asked == [None, f"bytes={server.breaks}-", f"bytes={2 * server.breaks}-"]


def test_what_an_earlier_call_left_is_resumed(tmp_path, archive, server):
    (tmp_path / "tiny-imagenet-200.zip.part").write_bytes(server.data[:1000])
    prepare("tiny-imagenet", tmp_path, archive)
    assert server.asked == ["bytes=1000-"]


def test_a_complete_part_is_recognised(tmp_path, archive, server):
    (tmp_path / "tiny-imagenet-200.zip.part").write_bytes(server.data)
    prepare("tiny-imagenet", tmp_path, archive)


def test_a_server_without_ranges_starts_anew(tmp_path, archive, server):
    server.ranges = False
    (tmp_path / "tiny-imagenet-200.zip.part").write_bytes(b"x" * 1000)
    prepare("tiny-imagenet", tmp_path, archive)


def test_a_wrong_checksum_is_refused_and_set_aside(tmp_path, archive):
    with pytest.raises(RunError, match=r"has md5 [0-9a-f]{32}, not 0000.*run this again for a new download"):
        prepare("tiny-imagenet", tmp_path, archive._replace(md5="0000"))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-imagenet-200.zip.broken"]


def test_wrong_counts_are_refused_and_leave_no_tar(tmp_path, archive):
    with pytest.raises(
        RunError, match=r"3 classes with \[3\] training and \[2\] validation images each, instead of 3 with 4"
    ):
        prepare("tiny-imagenet", tmp_path, archive._replace(train_each=4))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-imagenet-200.zip"]


def test_offline_it_says_what_to_do_by_hand_and_then_that_works(tmp_path, archive, server):
    nowhere = archive._replace(url="http://127.0.0.1:9/a.zip")
    with pytest.raises(
        RunError, match=r"cannot download http.*refused.*put it at .*tiny-imagenet-200\.zip and run this"
    ):
        prepare("tiny-imagenet", tmp_path, nowhere)
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(server.data)
    assert len(open_images(prepare("tiny-imagenet", tmp_path, nowhere)).val) == 6


def test_a_zip_that_leads_outside_its_folder_writes_nothing(tmp_path, archive, server):
    evil = zipped(tiny_imagenet_files() | {"../../outside.txt": b"x"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny-imagenet-200.zip").write_bytes(evil)
    with pytest.raises(RunError, match=r"outside its folder tiny-imagenet-200/"):
        prepare("tiny-imagenet", tmp_path / "data", archive._replace(md5=hashlib.md5(evil).hexdigest()))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiny-imagenet-200.zip"]


def test_a_full_disk_and_a_locked_folder(tmp_path, archive, monkeypatch):
    def fail(number):
        def pack(*arguments):
            raise OSError(number, "failed", str(tmp_path))

        return pack

    monkeypatch.setattr("seal_fast.data.prepare.download._pack", fail(28))
    with pytest.raises(RunError, match="disk full; free some space"):
        prepare("tiny-imagenet", tmp_path, archive)
    monkeypatch.setattr("seal_fast.data.prepare.download._pack", fail(13))
    with pytest.raises(UsageError, match="cannot write .*failed"):
        prepare("tiny-imagenet", tmp_path, archive)


def test_the_command(tmp_path, archive, monkeypatch, capsys):
    monkeypatch.setitem(DOWNLOADS, "tiny-imagenet", archive)
    assert main(["tiny-imagenet", "--folder", str(tmp_path)]) == 0
    assert "is complete: train on it with --data" in capsys.readouterr().out
    with pytest.raises(
        UsageError, match="cannot prepare 'cifar': known data sets are tiny-imagenet, flowers102, cub200"
    ):
        prepare("cifar", tmp_path)


def test_the_official_archive():
    official = DOWNLOADS["tiny-imagenet"]
    assert official.md5 == "90528d7ca1a48142e341f4ef8d21d0de"
    assert (official.classes, official.train_each, official.val_each) == (200, 500, 50)
