from dataclasses import replace

import pytest
import torch
from runs import BASE, outcome

from seal_fast.runs.folder import RunFolder
from seal_fast.train import run


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_two_graphs_for_a_whole_run_and_the_same_training(image_folder, tmp_path, small_network, fresh_dynamo):
    """Generations, phase switches, re-initialisation and a smaller last batch compile nothing more."""
    config = replace(BASE, method="seal+llf", data=str(image_folder), stem="small", lr=0.01, dtype="float64")
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
