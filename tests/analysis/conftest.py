"""Networks of width 8, and short runs of them that all tests of the analyses share."""

import pytest
import torch
from small_resnet import build_by_name

from seal_fast import train
from seal_fast.analysis.common import network
from seal_fast.config import Config
from seal_fast.training import assembly


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Networks of 8 channels wherever one is built."""
    monkeypatch.setattr(assembly, "build", build_by_name)
    monkeypatch.setattr(network, "build", build_by_name)


@pytest.fixture(autouse=True)
def one_thread():
    """These networks are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def runs(image_folder, tmp_path_factory):
    """Two seeds of SEAL and one restart: two short generations each, on 12 of the 20 training images."""
    root = tmp_path_factory.mktemp("runs")
    short = {"generations": 2, "epochs": 2, "ascent_epochs": 1, "batch_size": 6, "lr": 0.01, "warmup_epochs": 0}
    short |= {"keep": "ascents", "stem": "small", "limit_train": 12, "data": str(image_folder)}
    short |= {"record_examples": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "build", build_by_name)
        for method, seed in (("seal", 0), ("seal", 1), ("restart", 0)):
            train.run(Config(method=method, seed=seed, out=root / f"{method}-{seed}", threads=1, **short))
    return [root / name for name in ("seal-0", "seal-1", "restart-0")]


@pytest.fixture(scope="session")
def folder(runs):
    """The first of the runs."""
    return runs[0]
