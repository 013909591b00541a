"""The step takes nothing back from the device."""

from dataclasses import replace

import pytest
import torch
from runs import EXACT, trainer_of
from torch.utils._python_dispatch import TorchDispatchMode


class Scalars(TorchDispatchMode):
    """Counts reads of a tensor's value by the host: item(), float(), bool(), nonzero()."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "precision", [{"dtype": "float32"}, {"amp": True}, {"amp": True, "amp_dtype": "float16"}], ids=str
)
def test_no_step_reads_a_value_from_the_device(precision, image_folder, tmp_path, small_network):
    config = replace(
        EXACT, **{"dtype": "float32"} | precision, data=str(image_folder), augmentation="pad-crop", shuffle=True
    )
    config = replace(config, record_examples=True)
    with trainer_of(config, tmp_path / "run") as trainer:
        trainer.set_rates()
        with Scalars() as scalars:
            trainer.train()
        assert trainer.state.position.step == 3 and scalars.count == 0
        with scalars:  # the counter does count
            float(trainer.state.counters[0])
        assert scalars.count == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("amp_dtype", ["bfloat16", "float16"])
def test_no_step_synchronises_on_a_gpu(amp_dtype, compiled, image_folder, tmp_path):
    config = replace(EXACT, dtype="float32", amp=True, compile=compiled, device="cuda", data=str(image_folder))
    config = replace(config, record_examples=True, amp_dtype=amp_dtype)
    with trainer_of(config, tmp_path / "run") as trainer:
        trainer.set_rates()
        for _ in range(3):  # compiles, fills caches, and records the CUDA graph
            trainer.train()
            trainer.state.position.step = 0
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
