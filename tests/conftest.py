import logging
from pathlib import Path

import pytest
import torch
from image_folders import write_images


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Only tests marked `gpu` compute on one: the others expect a CPU's bits, on a machine with a GPU too."""
    with pytest.MonkeyPatch.context() as patch:
        if torch.cuda.is_available() and not item.get_closest_marker("gpu"):
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for programs that the test starts
        return (yield)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """An ImageFolder of 4 classes, 5 training and 3 validation images each, 16 x 16."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 4, 5, 16, seed=0)
    write_images(root / "val", 4, 3, 16, seed=1)
    return root


@pytest.fixture
def small_network(monkeypatch):
    """Make `train.run` build a ResNet-18 of 8 channels instead of 64: the same names and code, faster."""
    from small_resnet import build

    from seal_fast.training import assembly

    monkeypatch.setattr(assembly, "build", build)


@pytest.fixture
def shallow_network(monkeypatch):
    """As `small_network` with one block a layer, and without curves.png, which is half of a short run's time."""
    from small_resnet import build_shallow

    from seal_fast.runs import plots
    from seal_fast.training import assembly

    monkeypatch.setattr(assembly, "build", build_shallow)
    monkeypatch.setattr(plots, "draw", lambda *_: None)


@pytest.fixture(autouse=True)
def quiet_logger():
    """A test that trains makes the package's logger speak on the terminal; the next one finds it as it was."""
    yield
    logger = logging.getLogger("seal_fast")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
