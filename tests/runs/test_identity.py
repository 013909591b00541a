import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import save_model
from small_resnet import build

from seal_fast import train
from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.methods import timeline
from seal_fast.runs import identity
from seal_fast.runs.identity import (
    Training,
    labels,
    pair_by_seed,
    read_provenance,
    weights_sha256,
    write_provenance,
)
from seal_fast.utils.errors import UsageError

BASE = Config(data="/a/images.tar", epochs=8, generations=3, ascent_epochs=2)
KNOWN = {"data_sha256": "d", "init_weights_sha256": None, "devices": ["cpu"], "processes": [1]}


def same(a, b, known_a=KNOWN, known_b=KNOWN):
    return Training(a, known_a).key == Training(b, known_b).key


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4}, {"out": Path("x")}, {"threads": 1}, {"log_every": 1}, {"kernels": "reference"},
        {"checkpoint_seconds": 1.0}, {"eval_batch_size": 7}, {"on_bad_image": "skip"}, {"amp_dtype": "float16"},
        {"init_fc": False}, {"data": "/b/images.tar"}, {"ascent_epochs": 0.25}, {"reinit": "he-normal"},
        {"sync_batchnorm": True}, {"device": "cpu"}, {"hessian_every": 1},
    ],
)  # fmt: skip
def test_what_changes_no_number_makes_no_other_training(change):
    assert same(BASE, replace(BASE, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.2}, {"amp": True}, {"ascent_scale": 0.1}, {"layer_threshold": "layer4"}, {"limit_train": 5},
        {"label_smoothing": 0.0}, {"method": "llf"}, {"accumulate": 2}, {"dtype": "float64"}, {"eval_every": 1},
    ],
)  # fmt: skip
def test_what_changes_numbers_makes_another_training(change):
    assert not same(BASE, replace(BASE, **change))


@pytest.mark.parametrize("method", ["llf", "restart", "long"])
def test_settings_without_effect_on_the_method_do_not_count(method):
    plain = replace(BASE, method=method)
    assert same(plain, replace(plain, ascent_scale=0.5, ascent_epochs=0.5, ascent_weight_decay=1e-3))
    assert same(plain, replace(plain, layer_threshold="layer4")) == (method != "llf")
    assert same(plain, replace(plain, reinit="he-normal")) == (method != "llf")


def test_inputs_count_by_what_is_in_them():
    other = KNOWN | {"data_sha256": "e"}
    assert not same(BASE, BASE, KNOWN, other)
    started = replace(BASE, init_weights=Path("/a/w.safetensors"))
    one, two = KNOWN | {"init_weights_sha256": "1"}, KNOWN | {"init_weights_sha256": "2"}
    assert not same(started, started, one, two) and not same(BASE, started, KNOWN, one)
    assert same(started, replace(started, init_weights=Path("/b/w.safetensors")), one, one)
    assert not same(started, replace(started, init_fc=False), one, one)
    assert not same(BASE, BASE, KNOWN, KNOWN | {"processes": [2]})
    shared = replace(BASE, sync_batchnorm=True)
    assert same(shared, BASE, KNOWN | {"processes": [2]}, KNOWN)
    assert Training(BASE, KNOWN, ("a.png",)).key != Training(BASE, KNOWN).key


def test_without_provenance_paths_count():
    assert same(BASE, BASE, {}, {}) and not same(BASE, BASE, {}, KNOWN)
    assert not same(BASE, replace(BASE, data="/b/images.tar"), {}, {})
    assert not same(BASE, replace(BASE, init_weights=Path("w")), {}, {})


def test_labels_hold_what_differs_and_nothing_without_effect():
    found = [Training(replace(BASE, **s), KNOWN) for s in (
        {}, {"ascent_scale": 0.1}, {"method": "llf", "ascent_scale": 0.1}, {"method": "restart"},
    )]  # fmt: skip
    assert labels(found) == ["seal, ascent scale 0.01", "seal, ascent scale 0.1", "llf", "restart"]
    assert labels(found[:2]) == ["ascent scale 0.01", "ascent scale 0.1"]
    assert labels(found[:1]) == ["seal"] and labels([]) == []


def test_labels_tell_inputs_of_one_name_apart():
    config = replace(BASE, init_weights=Path("/a/w.safetensors"))
    found = [Training(config, KNOWN | {"init_weights_sha256": h * 64}) for h in "12"]
    assert labels(found) == ["init weights w.safetensors (11111111)", "init weights w.safetensors (22222222)"]
    found = [Training(replace(BASE, data=f"/a/{n}.tar"), KNOWN | {"data_sha256": n}) for n in "ab"]
    assert labels(found) == ["data a.tar", "data b.tar"]


def test_varied_settings_of_many_draws_take_a_few_keys_of_each(monkeypatch):
    """Half of the trainings have no ascent: its scale, drawn anew for each, acts on none of them."""
    keys = []
    monkeypatch.setattr(identity, "timeline", lambda config: keys.append(config) or timeline(config))
    methods = ("seal", "llf")
    draws = [{"method": methods[i % 2], "lr": 0.01 + i / 1000, "ascent_scale": 0.001 * (i + 1)} for i in range(200)]
    found = identity.varied_settings([Training(replace(BASE, **draw), KNOWN) for draw in draws])
    assert [set(settings) for settings in found[:2]] == [{"method", "lr", "ascent_scale"}, {"method", "lr"}]
    assert found == [{k: v for k, v in d.items() if k != "ascent_scale" or d["method"] == "seal"} for d in draws]
    assert len(keys) < 12 * len(draws)


@pytest.mark.parametrize("values", [(0.5, 4, 1), (0.25, 2, 0.3), (2, 0.5, 3)])
def test_a_length_acts_where_any_value_of_it_would(values):
    """Of 8 epochs: 0.25, 0.3 and 2 are the same ascent, and so are 0.5 and 4."""
    found = identity.varied_settings([Training(replace(BASE, ascent_epochs=v), KNOWN) for v in values])
    lengths = {replace(BASE, ascent_epochs=v).ascent() for v in values}
    assert found == [{"ascent_epochs": v} if len(lengths) > 1 else {} for v in values]


def test_pairs_go_by_seed_whatever_the_order():
    assert pair_by_seed({2: "c", 0: "a", 7: "x"}, {0: 1, 1: 2, 2: 3}) == [("a", 1), ("c", 3)]


def test_weights_are_named_by_their_tensors(tmp_path):
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(3, np.int64)}
    save_file(tensors, tmp_path / "one.safetensors")
    save_file(dict(reversed(tensors.items())), tmp_path / "two.safetensors", {"other": "header"})
    assert weights_sha256(tmp_path / "one.safetensors") == weights_sha256(tmp_path / "two.safetensors")
    for name, changed in (("b", tensors["b"] + 1), ("b", tensors["b"].reshape(3, 2)), ("c", tensors["b"])):
        save_file(tensors | {name: changed}, tmp_path / "other.safetensors")
        assert weights_sha256(tmp_path / "other.safetensors") != weights_sha256(tmp_path / "one.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not one of them, but long enough for a header's size")
    for name in ("bad", "missing"):
        with pytest.raises(UsageError, match="not a readable safetensors file"):
            weights_sha256(tmp_path / f"{name}.safetensors")


def test_a_resumed_run_adds_its_processes_and_keeps_what_it_started_from(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "w.safetensors")
    start = {"data_sha256": "d", "device": "cpu"}
    write_provenance(tmp_path, **start, init_weights=tmp_path / "w.safetensors", processes=1, resuming=False)
    before = read_provenance(tmp_path)
    assert before["init_weights_sha256"] == weights_sha256(tmp_path / "w.safetensors") and before["processes"] == [1]
    write_provenance(tmp_path, **start, init_weights=None, processes=2, resuming=True)
    assert read_provenance(tmp_path) == before | {"processes": [1, 2]}
    write_provenance(tmp_path, **start, init_weights=None, processes=4, resuming=False)  # no checkpoint was left
    assert read_provenance(tmp_path) == before | {"init_weights_sha256": None, "processes": [4]}
    for damaged in ("{", "[]", '{"processes": [1]}'):
        (tmp_path / "provenance.json").write_text(damaged)
        with pytest.raises(UsageError, match="provenance.json"):
            read_provenance(tmp_path)


def test_a_run_writes_where_it_comes_from(small_network, image_folder, tmp_path):
    settings = {
        "generations": 1,
        "epochs": 1,
        "ascent_epochs": 0,
        "warmup_epochs": 0,
        "batch_size": 10,
        "stem": "small",
    }
    images = {"data": str(image_folder), "init_fc": False, "init_weights": tmp_path / "start.safetensors"}
    save_model(build("resnet18", 2, stem="small"), str(images["init_weights"]))
    train.run(Config(out=tmp_path / "a", **images, **settings))
    found = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert found["init_weights_sha256"] == weights_sha256(images["init_weights"])
    assert found["data_sha256"] == open_images(str(image_folder)).fingerprint
    assert found["devices"] == ["cpu"] and found["processes"] == [1]
