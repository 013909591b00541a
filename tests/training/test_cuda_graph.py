"""The step as a CUDA graph. On the CPU a tape stands for the graph: calls on fixed memory, recorded without effect."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from runs import AMP, BASE, Killed, assert_identical, die_at, outcome
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seal_fast.config import Config
from seal_fast.train import run
from seal_fast.training import cuda_graph, runtime
from seal_fast.training.cuda_graph import StepGraph
from seal_fast.training.runtime import Runtime
from seal_fast.training.steps import Steps


class Tape(TorchDispatchMode):
    """Every call below autograd, with its very tensors: a replay repeats them on the same memory and runs no Python."""

    def __init__(self):
        super().__init__()
        self.calls, self.overwritten = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default  # a recording cannot wait for the device
        given = {**dict(zip((a.name for a in function._schema.arguments), args, strict=False)), **(kwargs or {})}
        for argument in function._schema.arguments:
            running = argument.name.startswith("running_")  # torch's batch norm does not declare that it writes these
            if running or (argument.alias_info is not None and argument.alias_info.is_write):
                written = [t for t in tree_leaves(given.get(argument.name)) if t is not None]
                self.overwritten += [(t, t.clone()) for t in written]
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def undo(self):
        for tensor, before in reversed(self.overwritten):
            tensor.copy_(before)

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage() is not new.untyped_storage():
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


class FakeRecorder:
    """As `cuda_graph.Recorder`, on the CPU; notes what is asked of each."""

    logs: list[list[str]] = []

    def __init__(self, device):
        self.log: list[str] = []
        self.logs.append(self.log)

    def run(self, work):
        self.log.append("run")
        work()

    def record(self, work):
        self.log.append("record")
        tape = Tape()
        with tape:
            work()
        with torch.no_grad():
            tape.undo()

        def replay():
            self.log.append("replay")
            tape.replay()

        return replay


@pytest.fixture
def on_tape(monkeypatch):
    monkeypatch.setattr(cuda_graph, "Recorder", FakeRecorder)
    FakeRecorder.logs.clear()
    monkeypatch.setattr(cuda_graph, "possible", lambda runtime: True)


def test_three_real_steps_then_one_recording_then_replays(on_tape):
    total = torch.zeros(())
    factor = torch.tensor(1.0)
    graph = StepGraph(
        lambda x, y: total.add_((x * y).sum() * factor), (torch.empty(2), torch.empty(2, dtype=torch.int64)), "cpu"
    )
    expected = 0.0
    for i in range(6):
        if i == 4:
            factor.fill_(10.0)  # what lies in tensors may change between replays
        graph(torch.full((2,), float(i)), torch.tensor([1, 2]))
        expected += 3 * i * (10 if i >= 4 else 1)
        assert total.item() == expected
    graph.buffers[0].fill_(7)  # written in place by the caller
    graph(graph.buffers[0], torch.tensor([1, 1]))
    assert total.item() == expected + 14 * 10
    assert FakeRecorder.logs == [["run"] * 3 + ["record"] + ["replay"] * 4]


def test_replays_train_as_steps_do(image_folder, tmp_path, monkeypatch, shallow_network, on_tape):
    """To the bit: an ascent, a re-initialisation, mixup, small last batches, evaluations, a kill; all recorded once."""
    config = replace(AMP, data=str(image_folder), mixup=0.4)
    with monkeypatch.context() as patch:
        patch.setattr(cuda_graph, "possible", lambda runtime: False)
        run(replace(config, out=tmp_path / "steps"))
    run(replace(config, out=tmp_path / "replays"))
    full, last, evaluation = FakeRecorder.logs  # of 2 generations of 2 epochs of 2 full batches
    assert full == ["run"] * 3 + ["record"] + ["replay"] * 5
    assert last == evaluation == ["run"] * 3 + ["record"] + ["replay"]
    assert_identical(outcome(tmp_path / "steps"), outcome(tmp_path / "replays"))

    killed = replace(config, out=tmp_path / "killed", checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        die_at(patch, 5)  # the smaller batch of the second epoch: two were recorded or run before in each
        with pytest.raises(Killed):
            run(killed)
    run(killed)
    assert_identical(outcome(tmp_path / "steps"), outcome(tmp_path / "killed"))


def test_a_replayed_scaler_skips_and_grows_as_in_plain_steps(
    image_folder, tmp_path, monkeypatch, shallow_network, on_tape
):
    """To the bit, under float16, through overflows and growth before and after the recording, and a kill."""
    numbers = dict(init_scale=2.0**32, growth_factor=16.0, backoff_factor=1 / 16, growth_interval=2)
    monkeypatch.setattr(Runtime, "scaler", lambda self: torch.amp.GradScaler("cpu", **numbers))
    config = replace(AMP, data=str(image_folder), amp_dtype="float16", ema=0.9, log_norms=True)
    scales, take = [], Steps.take

    def watched(self, batch):
        optimizer = self.state.optimizer
        tensors = optimizer._flat.buffer, optimizer._momentum, optimizer._ema, optimizer.norms
        before = [t.clone() for t in tensors]
        ended = take(self, batch)
        scales.append(self.state.scaler.get_scale())
        if scales[-1] < (scales[-2] if len(scales) > 1 else numbers["init_scale"]):  # skipped
            assert all(map(torch.equal, tensors, before))
        return ended

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "take", watched)
        with patch.context() as plain:
            plain.setattr(cuda_graph, "possible", lambda runtime: False)
            run(replace(config, out=tmp_path / "steps"))
        expected = scales.copy()
        scales.clear()
        run(replace(config, out=tmp_path / "replays"))
    assert len(FakeRecorder.logs) == 3 and scales == expected
    recorded = expected[5:]  # of an epoch's three batches the first two are full ones, whose fourth is recorded
    assert any(a > b for a, b in pairwise(recorded)) and any(a < b for a, b in pairwise(recorded))
    assert_identical(outcome(tmp_path / "steps"), outcome(tmp_path / "replays"))

    killed = replace(config, out=tmp_path / "killed", checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            run(killed)
    run(killed)
    assert_identical(outcome(tmp_path / "steps"), outcome(tmp_path / "killed"))


def test_where_steps_are_not_replayed():
    cpu = runtime.start(Config(device="cpu", compile=True))
    cuda = replace(cpu, device=torch.device("cuda"))
    assert not cuda_graph.possible(cpu)
    assert cuda_graph.possible(cuda)
    assert not cuda_graph.possible(replace(cuda, compile=False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", [{"amp": True}, {"amp": True, "amp_dtype": "float16"}, {}], ids=str)
def test_a_cuda_graph_trains_as_its_steps_do(how, image_folder, tmp_path, monkeypatch, small_network):
    config = replace(
        BASE, method="seal+llf", stem="small", data=str(image_folder), device="cuda", compile=True, deterministic=True,
        **how,
    )  # fmt: skip
    run(replace(config, out=tmp_path / "replays"))
    monkeypatch.setattr(cuda_graph, "possible", lambda runtime: False)
    run(replace(config, out=tmp_path / "steps"))
    assert_identical(outcome(tmp_path / "steps"), outcome(tmp_path / "replays"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", [{"amp": True, "compile": True}, {}, {"amp": True, "amp_dtype": "float16"}], ids=str)
def test_a_gpu_repeats_its_bits_if_asked_to(how, image_folder, tmp_path, monkeypatch, small_network):
    """Twice the same, max-pooling and all; and the same after a kill, where steps are Python's to count."""
    base = replace(BASE, stem="imagenet", image_size=32, data=str(image_folder), device="cuda", deterministic=True)
    config = replace(base, **how)
    for out in ("once", "again"):
        run(replace(config, out=tmp_path / out))
    assert_identical(outcome(tmp_path / "once"), outcome(tmp_path / "again"))
    if config.compile:
        return

    killed = replace(config, out=tmp_path / "killed", checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            run(killed)
    run(killed)
    assert_identical(outcome(tmp_path / "once"), outcome(tmp_path / "killed"))
