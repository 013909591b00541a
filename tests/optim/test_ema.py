"""--ema and --log-norms: averages and norms against literal float64 loops, resumed, and on two processes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from processes import together
from runs import AMP, BASE, EXACT, Killed, assert_close, assert_identical, die_at, outcome, trainer_of
from safetensors.torch import load_file
from small_network import LR, named_groups, network
from small_resnet import build_shallow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seal_fast import train
from seal_fast.arguments import parse
from seal_fast.optim import AnnealedSGD, ModelEMA
from seal_fast.runs.folder import RunFolder
from seal_fast.train import run
from seal_fast.utils.errors import UsageError

BOTH = dict(ema=0.8, log_norms=True)


def averages(model):
    return {name: t.detach().clone() for name, t in model.state_dict().items() if t.is_floating_point()}


def test_averages_and_norms_equal_literal_loops(image_folder, tmp_path, shallow_network):
    """SEAL in float64, with ascents and reset momentum; weights and running statistics."""
    config = replace(EXACT, data=str(image_folder), generations=2, epochs=2, eval_every=2, **BOTH)
    with trainer_of(config, tmp_path / "run") as trainer:
        model, optimizer = trainer.state.model, trainer.state.optimizer
        expected, update = averages(model), optimizer.step
        squares, rows = [], []

        def step(*_):
            before = averages(model)
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
            update()
            for name, value in averages(model).items():
                expected[name] = 0.8 * expected[name] + 0.2 * value
            squares.append(
                [
                    sum(float(t[name].square().sum()) for name in names)
                    for names in trainer.partition.groups.values()
                    for t in (gradients, {n: p.detach() - before[n] for n, p in model.named_parameters()})
                ]
            )
            if len(squares) == trainer.input.steps_per_epoch:
                rows.append(torch.tensor(squares, dtype=torch.float64).mean(0).tolist())
                squares.clear()

        optimizer.step = step
        trainer.run()
        own = averages(model)
        with trainer.state.ema.applied(), torch.no_grad():
            model.eval()
            batches = list(trainer.input.evaluation())
            logits = torch.cat([model(b.images)[b.valid] for b in batches])
            labels = torch.cat([b.labels[b.valid] for b in batches])
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            top1 = 100 * (logits.argmax(1) == labels).double().mean()
        assert all(torch.equal(t, own[name]) for name, t in averages(model).items())

    folder = RunFolder(tmp_path / "run")
    for file in ("last-ema", "generation-1-ema"):
        saved = load_file(folder.weights(file))
        assert saved.keys() == model.state_dict().keys()
        for name, value in expected.items():
            torch.testing.assert_close(saved[name], value, rtol=1e-12, atol=1e-12)
    metrics = folder.rows()
    assert [row["val_ema_loss"] is None for row in metrics] == [True, False, False, False]
    assert metrics[-1]["val_ema_loss"] == pytest.approx(float(loss), rel=1e-12)
    assert metrics[-1]["val_ema_top1"] == pytest.approx(float(top1)) and metrics[-1]["val_ema_top5"] == 100
    columns = [f"{what}_norm2_{group}" for group in ("early", "late") for what in ("grad", "update")]
    for row, literal in zip(metrics, rows, strict=True):
        assert [row[name] for name in columns] == pytest.approx(literal, rel=1e-10)
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    shown = [event.value for event in events.Scalars("update/norm2_early")]
    assert shown == pytest.approx([row["update_norm2_early"] for row in metrics])


@pytest.mark.parametrize("base", [BASE, pytest.param(AMP, marks=pytest.mark.long)], ids=["float32", "bfloat16"])
def test_it_resumes_to_the_bit(base, image_folder, tmp_path, monkeypatch, shallow_network):
    config = replace(
        base, data=str(image_folder), keep="ascents", checkpoint_seconds=0, generations=2, epochs=2, **BOTH
    )
    run(replace(config, out=tmp_path / "whole"))
    config = replace(config, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        die_at(patch, 7)  # amid an epoch
        with pytest.raises(Killed):
            run(config)
    run(config)
    whole = outcome(tmp_path / "whole")
    assert {"last-ema.safetensors", "generation-1-ascent-ema.safetensors"} < whole[0].keys()
    assert_identical(whole, outcome(tmp_path / "run"))


def test_training_is_the_same_with_and_without(image_folder, tmp_path, shallow_network):
    config = replace(AMP, data=str(image_folder), generations=1, ascent_epochs=0)
    run(replace(config, out=tmp_path / "without"))
    run(replace(config, out=tmp_path / "with", **BOTH))
    without, both = outcome(tmp_path / "without"), outcome(tmp_path / "with")
    assert all(torch.equal(t, both[1][name]) for name, t in without[1].items())
    assert [row | both[2][i] for i, row in enumerate(without[2])] == both[2]


@pytest.mark.long
def test_two_processes_equal_one(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("seal_fast.training.assembly.build", build_shallow)
    monkeypatch.setattr(train.plots, "draw", lambda *_: None)
    config = replace(EXACT, data=str(image_folder), generations=2, epochs=2, sync_batchnorm=True, **BOTH)
    together(2, run, replace(config, out=tmp_path / "two"))
    run(replace(config, out=tmp_path / "one"))
    assert_close(tmp_path / "two", tmp_path / "one", parts=("model.", "momentum.", "ema.", "norms"))


def test_a_state_of_another_model_is_refused():
    model = network()
    average = ModelEMA(model, AnnealedSGD(named_groups(model), LR, ema_decay=0.9), 0.9)
    with pytest.raises(ValueError, match="0.bias is not in both"):
        average.load_state_dict({name: t for name, t in average.state_dict().items() if name != "0.bias"})


@pytest.mark.parametrize("decay", ["1", "-0.1", "nan"])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(UsageError, match="--ema .* must be at least 0 and below 1"):
        parse(["--ema", decay])
