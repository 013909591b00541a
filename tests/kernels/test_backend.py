import logging

import pytest
import torch

from seal_fast.kernels import backend, native
from seal_fast.kernels.backend import BackendUnavailable, resolve

CPU = torch.device("cpu")


@pytest.fixture
def fresh():
    """`resolve` remembers its answers; a test that changes the world must neither see nor leave old ones."""
    backend._resolve.cache_clear()
    yield
    backend._resolve.cache_clear()


@pytest.fixture
def no_native(fresh, monkeypatch):
    monkeypatch.setattr(native, "module", lambda: None)


@pytest.mark.skipif(not native.available(), reason="installed without native kernels")
def test_auto_is_native_on_the_cpu(fresh, caplog):
    assert resolve("op", "auto", CPU) == "native"
    assert not caplog.records


def test_auto_falls_back_and_says_so_once_an_op(no_native, caplog):
    with caplog.at_level(logging.WARNING, "seal_fast"):
        assert [resolve("op", "auto", CPU) for _ in range(3)] == ["reference"] * 3
        assert resolve("other", "auto", CPU) == "reference"
    assert [r.name for r in caplog.records] == ["seal_fast"] * 2
    assert "op runs its slow reference on cpu" in caplog.text and "C++ compiler" in caplog.text


def test_a_missing_backend_that_was_asked_for_raises_with_the_cure(no_native):
    with pytest.raises(BackendUnavailable, match="op: .*install a C\\+\\+ compiler"):
        resolve("op", "native", CPU)


def test_triton_on_the_cpu_needs_the_interpreter(fresh, monkeypatch):
    monkeypatch.setattr(backend, "_interpreting", lambda: False)
    with pytest.raises(BackendUnavailable, match="set TRITON_INTERPRET=1"):
        resolve("op", "triton", CPU)
    monkeypatch.setattr(backend, "_interpreting", lambda: True)
    assert resolve("op", "triton", CPU) == "triton"


def test_an_op_without_a_kernel_for_the_device_runs_its_reference_in_silence(fresh, caplog):
    assert resolve("norm_act", "auto", torch.device("cuda")) == "reference" and not caplog.records
    with pytest.raises(BackendUnavailable, match="norm_act: there is no triton kernel of it"):
        resolve("norm_act", "triton", torch.device("cuda"))


def test_a_name_that_is_no_backend_is_refused(fresh):
    with pytest.raises(ValueError, match="auto, reference, native, triton"):
        resolve("op", "cuda", CPU)


def test_native_kernels_are_for_the_cpu(fresh):
    with pytest.raises(BackendUnavailable, match="CPU tensors"):
        resolve("op", "native", torch.device("cuda"))
