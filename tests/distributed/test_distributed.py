"""The same training on any number of processes."""

import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Hypothesis
from hypothesis import strategies as st
from processes import together
from runs import EXACT, Killed, assert_close, assert_identical, outcome
from safetensors.torch import load_file
from small_resnet import build_shallow
from timelines import timelines

from seal_fast import train
from seal_fast.methods.operators import EVERYTHING, Align, Mask, Mix, Orthogonalise, Scope, Source
from seal_fast.methods.schedule import Phase, Rule, Timeline, rules
from seal_fast.methods.text import dumps
from seal_fast.runs.folder import RunFolder
from seal_fast.train import run
from seal_fast.training import checkpoint, steps
from seal_fast.training.runtime import Runtime
from seal_fast.utils.errors import RunError

# 20 images in steps of 8: two processes share the last step of 4, for four it is too small and each computes it whole.
SAME = replace(EXACT, augmentation="pad-crop", shuffle=True, sync_batchnorm=True, warmup_epochs=0)
SHORT = replace(SAME, generations=2, epochs=2)


@pytest.fixture(autouse=True)
def shallow_network(monkeypatch):
    monkeypatch.setattr("seal_fast.training.assembly.build", build_shallow)
    monkeypatch.setattr(train.plots, "draw", lambda *_: None)


def run_all(configs):
    return [run(config) for config in configs]


def run_to(config, step):
    """Run until every process dies before its `step`-th step."""
    taken, original = iter(range(10**9)), steps.forward_and_loss

    def forward_and_loss(model, *rest, **extra):
        if model.training and next(taken) == step:
            raise Killed
        return original(model, *rest, **extra)

    steps.forward_and_loss = forward_and_loss
    try:
        run(config)
    except Killed:
        pass
    finally:
        steps.forward_and_loss = original


def run_twice(config, step):
    run_to(config, step)
    run(config)


@pytest.mark.parametrize(("size", "machines"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.long)])
def test_a_whole_seal_run_equals_that_of_one_process(size, machines, image_folder, tmp_path):
    """Weights, statistics, momentum, and the metrics of training and of the shared evaluation."""
    config = replace(SHORT, data=str(image_folder), keep="ascents", record_examples=True)
    summaries = together(size, run, replace(config, out=tmp_path / "many"), machines=machines)
    run(replace(config, out=tmp_path / "one"))
    assert_close(tmp_path / "many", tmp_path / "one")
    many, one = (load_file(RunFolder(tmp_path / name).examples(1)) for name in ("many", "one"))
    torch.testing.assert_close(many, one)
    assert one["seen"].eq(4).all()
    assert all(summary == summaries[0] for summary in summaries)


# One of each kind of state. Operators that score or transform whole tensors are in the run of four processes below.
KINDS = {
    "seal+llf": "confidence=0.2",
    "imp": "",
    "hare-tortoise": "decay=0.9,every=2",
    "asam": "rho=0.5",
}
OTHERS = {"reverse-keep-fc": "", "swa": "start=0.5", "born-again": "", "dnr": ""}


@pytest.mark.parametrize("kinds", [KINDS, pytest.param(OTHERS, marks=pytest.mark.long)], ids=["some", "others"])
def test_every_kind_of_method_equals_one_process(kinds, image_folder, tmp_path):
    short = replace(SHORT, data=str(image_folder), eval_every=9, limit_train=12)
    many = [replace(short, method=m, option=o, out=tmp_path / f"many-{m}") for m, o in kinds.items()]
    together(2, run_all, many)
    for config in many:
        run(replace(config, out=tmp_path / f"one-{config.method}"))
        assert_close(config.out, tmp_path / f"one-{config.method}", parts=("model.", "momentum.", "ema.", "snapshot."))


STATE = ("model.", "momentum.", "ema.", "snapshot.", "held.")


@pytest.mark.parametrize(("size", "count"), [(2, 2), pytest.param(4, 8, marks=pytest.mark.long)])
@settings(max_examples=2, deadline=None, phases=[Hypothesis.generate], suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_timeline_equals_that_of_one_process(size, count, image_folder, tmp_path_factory, data):
    out, many = tmp_path_factory.mktemp("random"), []
    for i in range(count):
        (out / f"{i}.toml").write_text(dumps(data.draw(timelines(epochs=1))))
        config = replace(SAME, data=str(image_folder), timeline=out / f"{i}.toml", eval_every=9)
        try:
            run(replace(config, out=out / f"one-{i}"))
            run(replace(config, out=out / f"again-{i}", threads=1))  # other sums of the same numbers
            assert_close(out / f"one-{i}", out / f"again-{i}", 1e-12, STATE)
        except (RunError, AssertionError):  # operators may leave no finite loss, or blow rounding up
            continue
        many.append(replace(config, out=out / f"many-{i}"))
    together(size, run_all, many)
    for config in many:
        assert_close(config.out, out / config.out.name.replace("many", "one"), parts=STATE)


@pytest.mark.long
def test_curvature_is_measured_on_everyones_images(image_folder, tmp_path):
    config = replace(SAME, data=str(image_folder), generations=1, epochs=1, ascent_epochs=0, hessian_every=1)
    config = replace(config, hessian_images=9)
    together(2, run, replace(config, out=tmp_path / "many"))
    run(replace(config, out=tmp_path / "one"))
    (many,), (one,) = (RunFolder(tmp_path / name).rows() for name in ("many", "one"))
    assert many["hessian_converged"] and many["hessian_loss"] == pytest.approx(one["hessian_loss"], rel=1e-10)
    assert many["hessian_top"] == pytest.approx(one["hessian_top"], rel=1e-6)


def test_without_shared_statistics_two_processes_are_two_parts_of_one(image_folder, tmp_path):
    """Each sees the half of a step that `--accumulate 2` sees; statistics differ. So under SAM, mixup, dropout."""
    config = replace(SHORT, method="asam", option="rho=0.5", data=str(image_folder), sync_batchnorm=False)
    config = replace(config, mixup=0.4, dropout=0.25)
    together(2, run, replace(config, out=tmp_path / "many"))
    run(replace(config, accumulate=2, out=tmp_path / "one"))
    weights = tuple(f"model.{name}" for name, _ in build_shallow("", 4).named_parameters())
    assert_close(tmp_path / "many", tmp_path / "one", parts=(*weights, "momentum."), rows=False)


@pytest.mark.long
def test_other_precisions_and_parts(image_folder, tmp_path):
    base = replace(SHORT, data=str(image_folder), dtype="float32")
    variants = {
        "float32": base,
        "accumulate": replace(base, dtype="float64", accumulate=2),
        "bfloat16": replace(base, amp=True),
        "float16": replace(base, amp=True, amp_dtype="float16"),
    }
    together(2, run_all, [replace(config, out=tmp_path / f"many-{name}") for name, config in variants.items()])
    for name, config in variants.items():
        run(replace(config, out=tmp_path / f"one-{name}"))
    assert distance(tmp_path / "many-float32", tmp_path / "one-float32") < 1e-4  # a ReLU may tip over
    assert_close(tmp_path / "many-accumulate", tmp_path / "one-accumulate")
    for name in ("bfloat16", "float16"):  # as far from float32 as one process is
        own = distance(tmp_path / f"one-{name}", tmp_path / "one-float32")
        assert 0 < distance(tmp_path / f"many-{name}", tmp_path / "one-float32") < 2 * own < 0.1
    many, one = (outcome(tmp_path / f"{way}-float16")[3] for way in ("many", "one"))
    for said in (many, one):
        said.pop("best")  # an image more or less, after roundings
    assert many == one  # the scaler's state too


@pytest.mark.long
def test_float32_differs_by_the_order_of_sums(image_folder, tmp_path):
    """Element by element, after six steps: a few units in the last place of each tensor's largest number.

    Sums over a step's images and pixels are taken in two parts here and in one there, and each way is rounded. An
    error in a weight, an image or a rate is thousands of units.
    """
    config = replace(SHORT, data=str(image_folder), dtype="float32", generations=1, ascent_epochs=0)
    together(2, run, replace(config, out=tmp_path / "many"))
    run(replace(config, out=tmp_path / "one"))
    many, one = (checkpoint.load(RunFolder(tmp_path / name).checkpoint).tensors for name in ("many", "one"))
    names = [name for name in one if name.startswith(("model.", "momentum.")) and one[name].is_floating_point()]
    assert len(names) == 100
    for name in names:
        unit = float(one[name].abs().max()) * 2**-24
        torch.testing.assert_close(many[name], one[name], rtol=0, atol=64 * unit, msg=lambda m, n=name: f"{n}: {m}")


def distance(out, other):
    """Between the weights of two runs, relative to their size."""
    states = [checkpoint.load(RunFolder(path).checkpoint).tensors for path in (out, other)]
    a, b = (torch.cat([t.flatten().double() for n, t in s.items() if n.startswith("model.")]) for s in states)
    return float((a - b).norm() / b.norm())


@pytest.mark.long
def test_compiled_processes_make_two_graphs(image_folder, tmp_path):
    config = replace(SHORT, data=str(image_folder), compile=True)
    for summary in together(2, run_compiled, replace(config, out=tmp_path / "compiled")):
        assert summary["graphs"] == 2
    run(replace(config, compile=False, out=tmp_path / "one"))
    assert_close(tmp_path / "compiled", tmp_path / "one")


def run_compiled(config):
    """Traced and differentiated as always, but not handed to the code generator, which takes half a minute."""
    Runtime.compiled = lambda self, function: torch.compile(
        function, fullgraph=True, dynamic=False, backend="aot_eager"
    )
    return run(config)


def test_a_checkpoint_of_four_goes_on_in_one_and_in_two(image_folder, tmp_path):
    """After every operator that needs whole tensors or gradients of whole batches: all processes do the same."""
    down, up = rules(all=Rule(weight_decay=5e-4)), rules(all=Rule(), early=Rule(-1, 0.1))
    scored = Mix(Scope(), Source("draw"), mask=Mask("snip", 0.2, across="network", images=0.5))
    enter = (Orthogonalise(Scope("layer4")), Align(Scope(parts=("weight", "bias"))), scored)
    later = (Phase("ascent", 1, up, enter, EVERYTHING), Phase("descent", 1, down))
    (tmp_path / "all.toml").write_text(dumps(Timeline("all", ((Phase("descent", 1, down),), later), 0.01)))
    config = replace(SAME, data=str(image_folder), checkpoint_seconds=0.0, timeline=tmp_path / "all.toml")
    together(4, run_to, replace(config, out=tmp_path / "four"), 4)  # in the ascent of the second generation
    assert checkpoint.load(RunFolder(tmp_path / "four").checkpoint).position == checkpoint.Position(1, 0, 1)
    shutil.copytree(tmp_path / "four", tmp_path / "two")
    together(2, run, replace(config, out=tmp_path / "two"))
    run(replace(config, out=tmp_path / "four"))
    run(replace(config, out=tmp_path / "whole"))
    assert_close(tmp_path / "four", tmp_path / "whole")
    assert_close(tmp_path / "two", tmp_path / "whole")


@pytest.mark.parametrize("sync", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_resumed_run_of_as_many_processes_is_bit_identical(sync, image_folder, tmp_path):
    config = replace(SHORT, data=str(image_folder), dtype="float32", sync_batchnorm=sync, checkpoint_seconds=0.0)
    together(2, run, replace(config, out=tmp_path / "whole"))
    together(2, run_twice, replace(config, out=tmp_path / "resumed"), 8)
    assert_identical(outcome(tmp_path / "resumed"), outcome(tmp_path / "whole"))
