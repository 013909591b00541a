from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Hypothesis
from runs import BASE, outcome
from timelines import timelines

from seal_fast.methods.operators import (
    EVERYTHING,
    Align,
    Average,
    Loss,
    Mask,
    Mix,
    Orthogonalise,
    Rescale,
    Scope,
    Sharpness,
    Source,
)
from seal_fast.methods.schedule import Phase, Rule, Timeline, rules
from seal_fast.methods.text import dumps, loads
from seal_fast.models import initialise_
from seal_fast.models.resnet import BasicBlock, ResNet
from seal_fast.runs.folder import RunFolder
from seal_fast.train import run
from seal_fast.training import assembly
from seal_fast.training.runtime import Compiled, Runtime
from seal_fast.utils.errors import RunError


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def two_layers(name, num_classes, stem="imagenet", seed=0, width=1.0):
    model = ResNet(BasicBlock, (1, 1), num_classes, stem, width=8)
    initialise_(model, seed)
    return model


@pytest.mark.slow
def test_two_graphs_for_a_whole_run_and_the_same_training(
    image_folder, tmp_path, shallow_network, fresh_dynamo, monkeypatch
):
    """Generations, phase switches, re-initialisation and a smaller last batch compile nothing more.

    The code generator takes a minute for a whole ResNet: two layers of one block each are enough here.
    """
    monkeypatch.setattr(assembly, "build", two_layers)
    config = replace(BASE, method="seal+llf", data=str(image_folder), stem="small", lr=0.01, dtype="float64")
    config = replace(config, generations=2, epochs=2, layer_threshold="layer2", record_examples=True)
    summary = run(replace(config, out=tmp_path / "compiled", compile=True))
    assert summary["graphs"] == 2
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert summary["compile_seconds"] > 0
    run(replace(config, out=tmp_path / "eager"))
    compiled, eager = outcome(tmp_path / "compiled")[2], outcome(tmp_path / "eager")[2]
    for a, b in zip(compiled, eager, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-7)
    # the compiler's seconds are told apart from the training's
    rows = RunFolder(tmp_path / "compiled").rows()
    assert rows[0]["compile_seconds"] > 1
    assert all(row["compile_seconds"] == 0 for row in rows[1:])


def compiled_quickly(monkeypatch):
    """Traced and differentiated as always, but not handed to the code generator, which takes half a minute."""
    options = dict(fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(Runtime, "compiled", lambda self, f: Compiled(f, torch.compile(f, **options)))


def test_no_phase_compiles_anything(image_folder, tmp_path, shallow_network, fresh_dynamo, monkeypatch):
    """Every kind of operator, state and loss, a moving threshold, mixup, dropout; distillation has two of its own."""
    compiled_quickly(monkeypatch)
    up, down = Rule(-1, 0.1, lr_multiplier_end=0.01), Rule(weight_decay=5e-4)
    everything = (
        Mix(Scope("layer2"), Source("snapshot"), 0.5, 0.5, Mask("magnitude", 0.5)),
        Mix(EVERYTHING, Source("average"), 0.5, 0.5),
        Orthogonalise(Scope("layer4")),
        Align(Scope(parts=("weight", "bias"))),
        Rescale(Scope(stop="layer2", parts=("norm",))),
    )
    average, loss = Average(0.9), Loss(0.0, 0.5, 1.0, 0.1)
    generations = (
        (Phase("descent", 1, rules(all=down), average=average),),
        (
            Phase("ascent", 2, rules(all=down, a=up), everything, snapshot=True, average=average, loss=loss),
            Phase("descent", 1, rules(all=down), hold=Scope(), average=average),
        ),
        (
            Phase("ascent", 1, rules(all=down, a=up, b=up), average=average, sharpness=Sharpness()),
            Phase("descent", 1, rules(all=down), average=average, loss=Loss(distil=0.5)),
        ),
    )
    timeline = Timeline("all", generations, 0.01, cuts=("layer2", "layer4"), groups=("a", "b", "c"))
    assert timeline.needs() == {"average", "snapshot", "held", "initial", "images", "loss"}
    (tmp_path / "all.toml").write_text(dumps(timeline))
    config = replace(BASE, data=str(image_folder), stem="small", timeline=tmp_path / "all.toml", eval_every=9)
    config = replace(config, mixup=0.4, dropout=0.25)
    assert run(replace(config, out=tmp_path / "run", compile=True))["graphs"] == 4


@settings(max_examples=4, deadline=None, phases=[Hypothesis.generate], suppress_health_check=list(HealthCheck))
@given(timelines(epochs=1))
def test_any_timeline_trains(image_folder, tmp_path_factory, shallow_network, timeline):
    out = tmp_path_factory.mktemp("random")
    (out / "random.toml").write_text(dumps(timeline))
    config = replace(BASE, data=str(image_folder), stem="small", timeline=out / "random.toml", dtype="float64")
    try:
        assert run(replace(config, out=out / "run", limit_train=16, eval_every=9))["finished"]
    except RunError as error:  # operators may leave no finite loss: then the run says so
        assert "NaN or infinite" in str(error)
        return
    assert len(RunFolder(out / "run").rows()) == timeline.total_epochs()
    assert loads(RunFolder(out / "run").timeline.read_text()) == timeline


@pytest.mark.long
@settings(max_examples=8, deadline=None, phases=[Hypothesis.generate], suppress_health_check=list(HealthCheck))
@given(timelines(epochs=1))
def test_any_timeline_compiles_as_many_graphs_as_it_has_kinds_of_passes(
    image_folder, tmp_path_factory, shallow_network, timeline
):
    """One to evaluate, one to train; where a phase distils, the teacher's and its own."""
    out = tmp_path_factory.mktemp("random")
    (out / "random.toml").write_text(dumps(timeline))
    config = replace(BASE, data=str(image_folder), stem="small", timeline=out / "random.toml", dtype="float64")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        compiled_quickly(patch)
        try:
            summary = run(replace(config, out=out / "run", limit_train=16, eval_every=9, compile=True))
        except RunError as error:
            assert "NaN or infinite" in str(error)
            return
    distils = {phase.loss is not None and phase.loss.distil > 0 for g in timeline.generations for phase in g}
    assert summary["graphs"] == 1 + (False in distils) + 2 * (True in distils)
