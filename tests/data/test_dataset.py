"""`auto`: where it looks, what it says, and that opening is cheap."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
from image_files import tar_of, tiny_imagenet_files, write

from seal_fast.data import open_images
from seal_fast.data.layouts import KNOWN, digits
from seal_fast.utils.errors import RunError, UsageError


@pytest.fixture
def nowhere(tmp_path, monkeypatch, caplog):
    """An empty working folder without SEAL_FAST_DATA, and the log."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEAL_FAST_DATA", raising=False)
    caplog.set_level(logging.INFO, "seal_fast")
    return caplog


def test_auto_falls_back_to_digits_and_says_so_in_one_line(nowhere):
    assert open_images("auto").layout == "digits"
    (line,) = nowhere.messages
    assert line.startswith("data: no Tiny-ImageNet in data, so scikit-learn's digits are used; get it with `python -m")


@pytest.mark.parametrize("name", ["tiny-imagenet-200", "tiny-imagenet", "Tiny_ImageNet"])
@pytest.mark.parametrize("as_tar", [False, True])
def test_auto_finds_it_in_data(nowhere, tmp_path, name, as_tar):
    folder = write(tmp_path / "data" / name, tiny_imagenet_files())
    if as_tar:
        expected = tar_of(folder)
        folder.rename(tmp_path / "elsewhere")
    else:
        expected = folder
    images = open_images()
    assert images.layout == "tiny-imagenet" and images.source == str(expected)
    assert nowhere.messages == [f"data: found {expected.relative_to(tmp_path)}"]


@pytest.mark.parametrize("named", ["parent", "folder", "tar"])
def test_the_variable_comes_before_data(nowhere, tmp_path, monkeypatch, named):
    write(tmp_path / "data" / "tiny-imagenet-200", tiny_imagenet_files())
    folder = write(tmp_path / "disk" / "tiny-imagenet-200", tiny_imagenet_files(train=5))
    place = {"parent": folder.parent, "folder": folder, "tar": tar_of(folder)}[named]
    monkeypatch.setenv("SEAL_FAST_DATA", str(place))
    assert len(open_images("auto").train) == 15


def test_a_variable_that_leads_nowhere_is_said(nowhere, monkeypatch):
    monkeypatch.setenv("SEAL_FAST_DATA", "/no/such/folder")
    assert open_images("auto").layout == "digits"
    assert "/no/such/folder or data" in nowhere.messages[0]


def test_every_layout_is_listed_when_none_fits(tmp_path):
    write(tmp_path / "set", {"photos/a.jpg": b"1", "readme.txt": b"2"})
    with pytest.raises(UsageError) as error:
        open_images(tmp_path / "set")
    assert all(layout.DESCRIPTION in str(error.value) for layout in KNOWN)


def test_opening_imports_neither_dali_nor_sklearn(image_folder):
    code = (
        "import sys; from seal_fast.data import open_images; images = open_images(sys.argv[1]); images.fingerprint; "
        "print([name for name in ('nvidia.dali', 'sklearn', 'PIL', 'matplotlib') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, image_folder], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_digits_come_from_the_package_where_its_file_is_not_in_the_usual_place(monkeypatch, tmp_path):
    usual = digits.read()
    spec = SimpleNamespace(origin=str(tmp_path / "sklearn" / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    moved = digits.read()
    assert moved.train.digest() == usual.train.digest() and moved.val.digest() == usual.val.digest()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="--data digits needs scikit-learn"):
        digits.read()
