"""Records of single training examples, against loops over the same logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from image_folders import write_images
from runs import BASE, Killed, die_at, trainer_of
from safetensors import safe_open
from safetensors.torch import load_file

from seal_fast.runs.folder import RunFolder
from seal_fast.train import run
from seal_fast.training import checkpoint, steps
from seal_fast.training.examples import Examples, margins
from seal_fast.utils.errors import UsageError
from seal_fast.validation import check

# 20 images in steps of 8; the second generation ascends for an epoch
CONFIG = replace(BASE, dtype="float64", stem="small", keep="ascents", record_examples=True, augmentation="pad-crop")


def literal(shown):
    """From (epoch, image, label, logits) in order, the records of each image as a dictionary."""
    found = {}
    for epoch, image, label, logits in shown:
        record = found.setdefault(image, dict(learnt=-1, forgotten=0, agreed=-1, seen=0, margin_sum=0.0, right=False))
        margin = logits[label] - max(value for other, value in enumerate(logits) if other != label)
        right = margin > 0
        record["forgotten"] += record["right"] and not right
        if right:
            record["learnt"] = epoch if record["learnt"] < 0 else record["learnt"]
            record["agreed"] = epoch
        record |= dict(right=right, seen=record["seen"] + 1, margin_sum=record["margin_sum"] + margin)
    return found


@pytest.fixture
def watched(monkeypatch):
    """Every training image as it is shown: [epoch, row, label, logits], where the first passes of SAM count alone."""
    shown, original = [], steps.Steps._backward
    forward = steps.forward_and_loss

    def backward(self, images, labels, full, cut, rows, last, counted=True):
        def keep(model, runtime, smoothing, weights, x, y, *more, **extra):
            kept = []
            hook = model.register_forward_hook(lambda *args: kept.append(args[2].detach().numpy().copy()))
            found = forward(model, runtime, smoothing, weights, x, y, *more, **extra)
            hook.remove()
            if counted:
                at = self.state.position
                shown.extend(zip([3 * at.generation + at.epoch] * len(y), rows.tolist(), y.tolist(), kept[0]))  # noqa: B905
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "forward_and_loss", keep)
            original(self, images, labels, full, cut, rows, last, counted)

    monkeypatch.setattr(steps.Steps, "_backward", backward)
    return shown


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"method": "sam", "generations": 1}], ids=str)
def test_records_are_those_of_a_loop_over_the_logits(settings, image_folder, tmp_path, shallow_network, watched):
    config = replace(CONFIG, data=str(image_folder), lr=0.05, generations=2)
    config = replace(config, **settings)
    run(replace(config, out=tmp_path))
    labels = np.repeat(np.arange(4), 5)
    assert all(labels[row] == label for _, row, label, _ in watched)
    for generation in range(config.generations):
        file = RunFolder(tmp_path).examples(generation)
        records = load_file(file)
        expected = literal([one for one in watched if one[0] < 3 * (generation + 1)])
        assert sorted(expected) == list(range(20)) and records["labels"].tolist() == labels.tolist()
        for row, record in expected.items():
            for name, value in record.items():
                assert records[name][row].item() == pytest.approx(value, rel=1e-12), (name, row)
        with safe_open(file, "pt") as opened:
            phases = '["ascent", "descent"]' if generation else '["descent"]'
            assert opened.metadata() == {"epochs": str(3 * generation + 3), "phases": phases}
        ends = [3 * generation, 3 * generation + 1, 3 * generation + 3] if generation else [0, 3]
        right = [[literal([one for one in watched if one[0] < e]).get(row, {}).get("right", False) for row in range(20)]
                 for e in ends]  # fmt: skip
        assert records["ends"].tolist() == right
    assert sum(record["forgotten"] for record in expected.values()) > 0


def test_a_kill_within_an_ascent_changes_no_record(image_folder, tmp_path, monkeypatch, shallow_network):
    config = replace(CONFIG, data=str(image_folder), generations=2, checkpoint_seconds=0.0, eval_every=9)
    run(replace(config, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        die_at(patch, 10)
        with pytest.raises(Killed):
            run(replace(config, out=tmp_path / "killed"))
    held = checkpoint.load(RunFolder(tmp_path / "killed").checkpoint)
    assert held.position.step == 1 and held.tensors["examples.epoch_margins"].isnan().sum() == 20 - 8
    run(replace(config, out=tmp_path / "killed"))
    for generation in (0, 1):
        a, b = (load_file(RunFolder(tmp_path / n).examples(generation)) for n in ("whole", "killed"))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_recording_changes_no_weight_and_stream_equals_resident(image_folder, tmp_path, shallow_network):
    config = replace(CONFIG, data=str(image_folder), generations=1, epochs=2, eval_every=9)
    run(replace(config, out=tmp_path / "resident", input="resident"))
    run(replace(config, out=tmp_path / "stream", input="stream"))
    run(replace(config, out=tmp_path / "plain", record_examples=False))
    weights = [load_file(tmp_path / n / "weights/last.safetensors") for n in ("resident", "plain")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    records = [load_file(RunFolder(tmp_path / n).examples(0)) for n in ("resident", "stream")]
    assert all(torch.equal(records[0][name], records[1][name]) for name in records[0])
    assert not (tmp_path / "plain" / "examples").exists()
    with pytest.raises(UsageError, match="--record-examples: False -> True"):
        run(replace(config, out=tmp_path / "plain"))


def test_an_image_that_stands_in_for_an_unreadable_one_is_not_recorded_twice(tmp_path, shallow_network):
    write_images(tmp_path / "data" / "train", 2, 5, 16, seed=0)
    write_images(tmp_path / "data" / "val", 2, 2, 16, seed=1)
    bad = sorted((tmp_path / "data" / "train").rglob("*.png"))[3]
    bad.write_bytes(bad.read_bytes()[:100])
    config = replace(CONFIG, data=str(tmp_path / "data"), generations=1, epochs=2, input="stream", on_bad_image="skip")
    run(replace(config, batch_size=5, out=tmp_path / "run"))
    assert load_file(RunFolder(tmp_path / "run").examples(0))["seen"].tolist() == [2, 2, 2, 0, 2, 2, 2, 2, 2, 2]


def test_margins_and_degenerate_examples():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 0.0]])
    assert margins(logits, torch.tensor([1, 0])).tolist() == [1.0, 0.0]
    assert margins(logits[:, :1], torch.tensor([0, 0])).tolist() == [float("inf")] * 2
    records = Examples(2, 1, torch.device("cpu"))
    records.write(torch.tensor([1, 2]), torch.tensor([0.0, 5.0]))  # equal logits are wrong; row 2 takes stand-ins
    records.end_epoch(0, 0)
    before = records.records()
    records.end_epoch(0, 0)  # doing it twice is doing it once
    assert all(torch.equal(before[name], tensor) for name, tensor in records.records().items())
    assert before["learnt"].tolist() == [-1, -1] and before["seen"].tolist() == [0, 1]
    with pytest.raises(UsageError, match="mixtures"):
        check(replace(CONFIG, data="x", mixup=0.2))


def test_a_step_writes_margins_outside_the_evaluation(image_folder, tmp_path, shallow_network):
    with trainer_of(replace(CONFIG, data=str(image_folder)), tmp_path) as trainer:
        x, y = torch.zeros(8, 3, 16, 16, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
        assert len(trainer.steps.forward.function(x, y)) == 3
        trainer.state.model.eval()
        assert len(trainer.steps.forward.function(x, y)) == 2
