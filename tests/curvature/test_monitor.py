"""`--hessian-every`: figures of the weights of that moment, and a training that does not notice."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_resnet import build

from seal_fast import arguments
from seal_fast.config import Config
from seal_fast.curvature import HessianOperator, lanczos
from seal_fast.curvature import monitor as training
from seal_fast.data import open_images
from seal_fast.data.batches import batches
from seal_fast.models.resnet import BasicBlock, ResNet
from seal_fast.runs.folder import RunFolder
from seal_fast.train import run
from seal_fast.training import assembly, trainer
from seal_fast.training.signals import Interrupted
from seal_fast.utils.errors import RunError, UsageError

BASE = Config(generations=2, epochs=2, ascent_epochs=1, warmup_epochs=1, batch_size=6, seed=3, keep="ascents")
CLOCKS = {"images_per_s", "seconds", "input_wait_seconds", "compile_seconds", "hessian_seconds"}


def rows(out):
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in RunFolder(out).rows()]


def weights(out):
    return {path.stem: load_file(path) for path in (out / "weights").iterdir()}


@pytest.fixture(autouse=True)
def narrow(small_network):
    """Networks of 8 channels."""


@pytest.fixture(scope="module")
def config(image_folder):
    return replace(BASE, data=str(image_folder), stem="small", limit_train=12, hessian_images=8, threads=1)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A measured run, and the state of torch's random generator after it."""
    out = tmp_path_factory.mktemp("runs") / "measured"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "build", build)
        run(replace(config, out=out, hessian_every=1))
    return out, torch.get_rng_state()


@pytest.fixture
def measured(finished):
    return finished[0]


def truth(weights, images):
    """Both ends of the spectrum by double backward in float64."""
    model = ResNet(BasicBlock, (2, 2, 2, 2), 4, "small", width=8).double().eval()
    model.load_state_dict({name: t.double() if t.is_floating_point() else t for name, t in weights.items()})
    split = images.train.spread(12).spread(8)
    parts = list(batches(images, split, image_size=16, batch_size=8, dtype=torch.float64))
    loss = lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=0.1)  # noqa: E731
    operator = HessianOperator(model, loss, parts, method="double-backward")
    found = lanczos(operator, 1, 1, tol=1e-6, seed=9)
    return found.top.values[0], found.bottom.values[0], operator.loss_value


def test_the_figures_are_those_of_the_weights(measured, config):
    images, kept = open_images(config.data), weights(measured)
    found = rows(measured)
    stages = {1: "generation-0", 2: "generation-1-ascent", 3: "generation-1"}  # the ends of phases
    assert [i for i, row in enumerate(found) if "hessian_top" in row] == list(stages)
    for i, stage in stages.items():
        top, bottom, loss = truth(kept[stage], images)
        assert found[i]["hessian_top"] == pytest.approx(top, rel=1e-2)
        assert found[i]["hessian_bottom"] == pytest.approx(bottom, rel=1e-2)
        assert found[i]["hessian_loss"] == pytest.approx(loss, rel=1e-4)
        assert found[i]["hessian_converged"] and found[i]["hessian_hvps"] > 2


def assert_same_training(measured, plain):
    assert [{k: v for k, v in row.items() if "hessian" not in k} for row in rows(measured)] == rows(plain)
    kept = weights(plain)
    for stage, tensors in weights(measured).items():
        assert [name for name, t in tensors.items() if not torch.equal(t, kept[stage][name])] == []


def test_training_does_not_notice(finished, config, tmp_path):
    """Nor does the order of what is drawn at random: by seed, or by a user's model from the global generator."""
    folders, states = {1: finished[0]}, {1: finished[1]}
    for every in (0, 2):
        folders[every] = tmp_path / str(every)
        run(replace(config, out=folders[every], hessian_every=every))
        states[every] = torch.get_rng_state()
    for every in (1, 2):
        assert torch.equal(states[every], states[0])
        assert [row["generation"] for row in rows(folders[every]) if "hessian_top" in row] == [0, 1, 1][every - 1 :]
        assert_same_training(folders[every], folders[0])


def test_training_under_autocast_does_not_notice(config, tmp_path):
    short = replace(config, amp=True, generations=1, epochs=1, ascent_epochs=0, warmup_epochs=0)
    for every in (0, 1):
        run(replace(short, out=tmp_path / str(every), hessian_every=every))
    assert any("hessian_top" in row for row in rows(tmp_path / "1"))
    assert_same_training(tmp_path / "1", tmp_path / "0")


def test_tensorboard_shows_them(measured):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(measured / "tensorboard"))
    events.Reload()
    assert {"hessian/top", "hessian/bottom"} <= set(events.Tags()["scalars"])
    shown = [(event.step, pytest.approx(event.value)) for event in events.Scalars("hessian/top")]
    assert shown == [(i + 1, row["hessian_top"]) for i, row in enumerate(rows(measured)) if "hessian_top" in row]


def test_a_signal_amid_a_measurement_loses_nothing(measured, config, tmp_path, monkeypatch):
    config = replace(config, out=tmp_path / "stopped", hessian_every=1)
    with monkeypatch.context() as patch:
        products = []
        original = training.lanczos

        def lanczos_with_a_signal(*arguments, watch, **options):
            def told(hvps, *rest):
                products.append(hvps)
                if len(products) == 20:  # within the second measurement
                    asked.ask(15)
                return watch(hvps, *rest)

            return original(*arguments, watch=told, **options)

        real = trainer.stop_signals

        def asked(ask):
            asked.ask = ask
            return real(ask)

        patch.setattr(trainer, "stop_signals", asked)
        patch.setattr(training, "lanczos", lanczos_with_a_signal)
        with pytest.raises(Interrupted):
            run(config)
    assert len(rows(config.out)) < 4
    run(config)
    assert rows(config.out) == rows(measured)
    kept = weights(measured)
    for stage, tensors in weights(config.out).items():
        assert all(torch.equal(t, kept[stage][name]) for name, t in tensors.items())


def test_a_failure_is_told_and_stops_nothing(config, tmp_path, monkeypatch, capsys):
    def fail(*_arguments, **_options):
        raise RunError("the loss or its gradient is NaN or infinite")

    monkeypatch.setattr(training, "HessianOperator", fail)
    run(replace(config, out=tmp_path / "run", hessian_every=1, generations=1))
    assert "curvature could not be measured: the loss or its gradient is NaN" in capsys.readouterr().out
    assert len(rows(tmp_path / "run")) == 2 and not any("hessian_top" in row for row in rows(tmp_path / "run"))


def test_the_flags_are_checked_and_may_change_on_resuming(measured):
    for flags in (["--hessian-every", "-1"], ["--hessian-images", "0"]):
        with pytest.raises(UsageError, match=f"{flags[0]} {flags[1]}: must be at least"):
            arguments.parse(flags)
    assert arguments.parse(["--out", str(measured), "--hessian-every", "3"]).hessian_every == 3
