"""The compiled training step as Inductor writes it for an A100, without one."""

import json
from pathlib import Path

import pytest
import torch

from bench.gpu_report import pretend, step_report
from bench.gpu_report.__main__ import main
from seal_fast.kernels import torch_private

# python -m bench.gpu_report step --amp --layout NHWC --json FLAGS > tests/gpu_report/NAME_bf16_nhwc.json
RECORDS = {"resnet18": "", "wrn": "--model wrn-10-1 --image-size 32"}
supported = pytest.mark.skipif(pretend.unsupported() is not None, reason=str(pretend.unsupported()))


@pytest.mark.slow
@supported
@pytest.mark.parametrize("name", ["wrn", pytest.param("resnet18", marks=pytest.mark.long)])
def test_the_step_for_an_a100_counts_no_more_than_recorded(name, capsys):
    recorded = json.loads((Path(__file__).parent / f"{name}_bf16_nhwc.json").read_text())
    assert main(f"step --amp --layout NHWC --json {RECORDS[name]}".split()) == 0
    now = json.loads(capsys.readouterr().out)
    assert {k: v for k, v in now.items() if k != "columns"} == {k: v for k, v in recorded.items() if k != "columns"}
    (facts,), (before,) = now["columns"], recorded["columns"]
    assert facts["graphs"] == 1  # no break
    assert facts["layout_copies"] == 0
    assert facts["fp32_convolutions"] == 0
    counts = ("triton_kernels", "triton_launches", "casts", "triton_bytes", "library_bytes", "flops")
    worse = {name: f"{before[name]} -> {facts[name]}" for name in counts if facts[name] > before[name]}
    assert not worse
    assert facts["library_calls"] == before["library_calls"]
    assert facts["flops"] == flops_of_eager_step(now)


def flops_of_eager_step(request):
    """Counted by torch over the uncompiled network."""
    from torch.utils.flop_counter import FlopCounterMode

    from seal_fast.models import architecture

    size = request["image_size"]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = architecture(request["model"], request["classes"], request["stem"])
        model(torch.empty(request["batch"], 3, size, size)).sum().backward()
    return counter.get_total_flops()


@supported
def test_sums_over_small_maps_are_one_kernel(monkeypatch):
    """Inductor is asked about all others, and its caches keep the two choices apart."""
    from torch._inductor import choices, config

    monkeypatch.setattr(choices.InductorChoices, "reduction_split_factor", staticmethod(lambda *_: 7))
    with config.patch(inductor_choices_class=None):  # monkeypatch would delete the setting for good
        with monkeypatch.context() as patch:
            patch.setattr(torch, "__version__", "2.14.0")
            torch_private.keep_reductions_whole()
            assert config.inductor_choices_class is None
        before = config.save_config_portable()
        torch_private.keep_reductions_whole()
        split, cuda = config.inductor_choices_class().reduction_split_factor, torch.device("cuda")
        assert split(cuda, 8192, 256, False) == 1
        others = [
            (cuda, 8192, 255, False),
            (cuda, 8193, 256, False),
            (cuda, 8192, 256, True),
            (torch.device("cpu"), 9, 256, False),
        ]
        assert [split(*other) for other in others] == [7] * 4
        assert config.save_config_portable() != before


@pytest.mark.long
@supported
def test_layout_copies_and_fp32_convolutions_are_seen(capsys):
    """Weights that are not channels-last are copied, which must show."""
    flags = "--no-amp --layout NCHW --model resnet18 --stem small --image-size 8 --batch 2"
    assert main(["step", "--json", *flags.split()]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["columns"]
    assert facts["layout_copies"] > 0 and facts["casts"] == 0
    assert (
        facts["fp32_convolutions"]
        == facts["library_calls"]["convolution"] + facts["library_calls"]["convolution_backward"]
    )


FACTS = {
    "amp": True,
    "layout": "NHWC",
    "parameters": 1_000_000,
    "graphs": 1,
    "triton_kernels": 5,
    "triton_launches": 7,
    "layout_copies": 0,
    "casts": 2,
    "triton_bytes": 300_000_000,
    "library_calls": {"convolution": 10, "mm": 2},
    "library_bytes": 88_000_000,
    "fp32_convolutions": 0,
    "flops": 312_000_000,
}


def test_totals_follow_from_the_counts():
    assert step_report.totals(FACTS) == {**FACTS, "launches": 7 + 12 + 3, "bytes": 408_000_000}


def test_columns_stand_beside_each_other():
    columns = [step_report.totals(FACTS)] * 2
    columns[1] = {**columns[1], "amp": False, "layout": "NCHW", "library_calls": {"mm": 3}}
    request = {"model": "resnet18", "stem": "small", "batch": 2, "image_size": 8, "arch": 90}
    lines = [line.split() for line in step_report.text({**request, "columns": columns}).splitlines()]
    assert ["bf16", "NHWC", "fp32", "NCHW"] in lines
    assert ["convolution", "10", "0"] in lines and ["mm", "2", "3"] in lines
    assert ["launches", "22", "22"] in lines


def test_another_torch_is_refused_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert main(["step"]) == 1
    error = capsys.readouterr().err
    assert "uses private names of torch 2.13 and this is torch 2.99.0" in error and error.count("\n") == 1


def test_a_failed_compilation_ends_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(step_report.sys, "executable", "/bin/false")
    assert main(["step", "--layout", "NHWC"]) == 1
    assert capsys.readouterr().err == "error: the step could not be compiled for sm_80: it gave no reason\n"
