import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_resnet import build_by_name as build

from seal_fast.analysis.common.features import Extractor, cache_folder
from seal_fast.analysis.common.network import open_network
from seal_fast.config import Config
from seal_fast.data import make_input, open_images
from seal_fast.training import runtime
from seal_fast.utils.errors import RunError, UsageError

MACHINE = runtime.start(Config(device="cpu"))


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(build("resnet18", 4, "small", seed=2).state_dict(), path)
    return path


@pytest.fixture
def folder(image_folder, tmp_path):
    return Path(shutil.copytree(image_folder, tmp_path / "copy"))


def opened(path):
    return open_network(path, stem="small", image_size=16)


def ask(weights, folder, cache, part="val", machine=MACHINE, **settings):
    """Features, and whether they came from the cache."""
    extract = Extractor(machine, cache, **settings)
    found = extract(opened(weights), open_images(folder), part)
    assert extract.extracted + extract.found == 1
    return found, extract.found == 1


def test_features_are_what_the_last_layer_reads(weights, folder):
    images = open_images(folder)
    network = opened(weights).load()
    batch = next(make_input(images, "resident", image_size=16, batch_size=2, eval_batch_size=12).evaluation())
    with torch.no_grad():
        expected = network.embed(batch.images)
    found, _ = ask(weights, folder, None, batch_size=5)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5)
    assert found.values.shape == (12, 64) and found.values.dtype == torch.float32
    assert found.labels.tolist() == batch.labels.tolist()
    with torch.no_grad():
        torch.testing.assert_close(network.fc(found.values), network(batch.images), rtol=1e-3, atol=1e-3)


def test_the_second_time_they_come_from_the_cache(weights, folder, tmp_path):
    first, hit = ask(weights, folder, tmp_path / "c")
    again, hit_again = ask(weights, folder, tmp_path / "c")
    assert (hit, hit_again) == (False, True)
    assert torch.equal(first.values, again.values) and torch.equal(first.labels, again.labels)
    moved = shutil.move(folder, tmp_path / "elsewhere")
    renamed = shutil.copy(weights, tmp_path / "renamed.safetensors")
    assert ask(renamed, moved, tmp_path / "c")[1]


def test_whatever_decides_them_misses(weights, folder, tmp_path):
    cache = tmp_path / "c"
    ask(weights, folder, cache)
    assert not ask(weights, folder, cache, part="train")[1]
    assert not ask(weights, folder, cache, image_size=24)[1]
    assert not ask(weights, folder, cache, machine=runtime.start(Config(device="cpu", amp=True)))[1]
    tensors = load_file(weights)
    tensors["bn1.weight"][3] += 1e-6
    other = tmp_path / "other.safetensors"
    save_file(tensors, other)
    assert not ask(other, folder, cache)[1]
    assert ask(weights, folder, cache)[1]


def test_an_image_changed_within_its_size_misses(weights, folder, tmp_path):
    old, _ = ask(weights, folder, tmp_path / "c")
    short, long = sorted((folder / "val" / "class1").iterdir(), key=lambda file: file.stat().st_size)[:2]
    long.write_bytes(short.read_bytes().ljust(long.stat().st_size, b"\0"))  # what follows the picture is ignored
    new, hit = ask(weights, folder, tmp_path / "c")
    assert not hit and (old.values != new.values).any(1).sum() == 1


def test_a_moved_label_misses(weights, folder, tmp_path):
    ask(weights, folder, tmp_path / "c")
    shutil.move(folder / "val" / "class1" / "000.png", folder / "val" / "class0" / "900.png")
    assert not ask(weights, folder, tmp_path / "c")[1]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_entry_is_made_anew(weights, folder, tmp_path, damage, caplog):
    cache = tmp_path / "c"
    good, _ = ask(weights, folder, cache)
    (entry,) = cache.rglob("*.safetensors")
    content = bytearray(entry.read_bytes())
    content[-100] ^= 1
    entry.write_bytes({"cut": content[:-40], "flip": content, "empty": b""}[damage])
    again, hit = ask(weights, folder, cache)
    assert not hit and torch.equal(good.values, again.values) and "is damaged" in caplog.text
    assert ask(weights, folder, cache)[1]


def test_a_cache_that_cannot_be_written_costs_nothing_else(weights, folder, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found, hit = ask(weights, folder, tmp_path / "file")
    assert not hit and found.values.shape == (12, 64) and "could not be written" in caplog.text


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("SEAL_FAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/seal_fast")
    monkeypatch.setenv("SEAL_FAST_CACHE", "/said")
    assert cache_folder() == Path("/said")
    assert cache_folder(tmp_path) == tmp_path


def test_a_network_that_does_not_fit_or_has_diverged_ends_in_a_sentence(weights, folder, tmp_path):
    tensors = load_file(weights)
    tensors["bn1.weight"][0] = 3e38  # overflows
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(RunError, match="NaN or infinite features for copy"):
        ask(tmp_path / "nan.safetensors", folder, None)
    save_file(build("resnet34", 4, "small").state_dict(), tmp_path / "34.safetensors")
    with pytest.raises(UsageError, match="another architecture"):
        ask(tmp_path / "34.safetensors", folder, None)


def test_without_a_home_a_folder_must_be_named(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SEAL_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UsageError, match="no home folder for the cache: name one with --cache"):
        cache_folder()
    assert cache_folder(tmp_path) == tmp_path
