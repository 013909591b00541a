"""Under bfloat16 autocast the network reads the optimiser's copy of the weights: with the numbers of plain autocast."""

from dataclasses import replace

import pytest
import torch
from runs import AMP, Killed, assert_identical, die_at, outcome, trainer_of
from small_resnet import build_shallow

from seal_fast.runs import plots
from seal_fast.train import run
from seal_fast.training import assembly
from seal_fast.training.runtime import Compiled, Runtime


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory):
    """Generations, ascents, re-initialisations, evaluations, smaller last batches; the settings and what came out."""
    config = replace(AMP, data=str(image_folder), out=tmp_path_factory.mktemp("amp") / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "build", build_shallow)
        patch.setattr(plots, "draw", lambda *_: None)
        run(config)
    return config, outcome(config.out)


def plain_autocast(monkeypatch):
    monkeypatch.setattr(Runtime, "bf16_weights", property(lambda self: False))


def test_a_run_equals_plain_autocast_to_the_bit(whole, tmp_path, monkeypatch, shallow_network):
    """Also with gradients of several passes."""
    config, expected = whole
    parts = replace(config, accumulate=2, generations=1, ascent_epochs=0, method="restart")
    run(replace(parts, out=tmp_path / "parts"))
    plain_autocast(monkeypatch)
    run(replace(config, out=tmp_path / "plain"))
    assert_identical(outcome(tmp_path / "plain"), expected)
    run(replace(parts, out=tmp_path / "plain-parts"))
    assert_identical(outcome(tmp_path / "plain-parts"), outcome(tmp_path / "parts"))


def test_it_resumes(whole, tmp_path, monkeypatch, shallow_network):
    config = replace(whole[0], checkpoint_seconds=0, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        die_at(patch, 6)  # the start of an ascent, where the late layers are drawn anew
        with pytest.raises(Killed):
            run(config)
    run(config)
    assert_identical(whole[1], outcome(tmp_path / "run"))


def test_two_graphs_and_no_break(whole, tmp_path, monkeypatch, shallow_network):
    """Traced and differentiated as under --compile, then run by torch's own kernels: the same numbers again."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(
        Runtime,
        "compiled",
        lambda self, f: Compiled(f, torch.compile(f, fullgraph=True, dynamic=False, backend="aot_eager")),
    )
    assert run(replace(whole[0], out=tmp_path / "traced", compile=True))["graphs"] == 2
    torch._dynamo.reset()
    assert_identical(whole[1], outcome(tmp_path / "traced"))


class Casts(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts changes of type from or to bfloat16 of tensors as large as a weight."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].shape in self.shapes:
            self.count += args[0].dtype != result.dtype
        return result


@pytest.mark.parametrize("plain, casts", [(False, 0), (True, 2 * 14)])
def test_no_step_casts_a_weight_or_its_gradient(plain, casts, image_folder, tmp_path, monkeypatch, shallow_network):
    if plain:
        plain_autocast(monkeypatch)
    with trainer_of(replace(AMP, data=str(image_folder), limit_train=8), tmp_path / "run") as trainer:
        model = trainer.state.model
        names = [name for name, p in model.named_parameters() if p.ndim > 1 or name == "fc.bias"]
        assert len(names) == 14  # 12 convolutions (3 of them downsample), a linear layer's weight and bias
        trainer.set_rates()
        seen = Casts({p.shape for name, p in model.named_parameters() if name in names})
        with seen:
            trainer.train()
        assert seen.count == casts
        # what is kept is the float32 weights, under the model's own names
        assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
        copy = trainer.state.optimizer.bf16_weights() if not plain else {}
        assert all(torch.equal(copy[name], p.bfloat16()) for name, p in model.named_parameters() if not plain)
