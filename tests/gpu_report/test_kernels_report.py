"""What the compiler makes of every Triton kernel for sm_80 and sm_90: frozen, and judged by this report."""

import json
from dataclasses import replace

import pytest

from bench.gpu_report import kernels_report
from bench.gpu_report.__main__ import main
from bench.gpu_report.cards import CARDS
from bench.gpu_report.target import compile_variant, read_cubin
from seal_fast.utils.errors import RunError

pytest.importorskip("triton", reason="Triton is not installed")
VARIANTS = {f"{v.op}-{v.name}": v for v in kernels_report.variants()}
# Ground truth: the kernel reads param, momentum and grad and writes the first two; augment reads bytes, writes values.
BYTES = {
    "annealed_sgd-fp32": 20,
    "annealed_sgd-fp32-grad-bf16": 18,
    "annealed_sgd-fp32-everything": 20 + 2 * 4 + 2,
    "annealed_sgd-fp32-amp": 20 + 2,
    "annealed_sgd-fp64": 40,
    "augment-bf16": 1 + 2,
    "augment-fp64": 1 + 8,
    "augment-bf16-grey": 1 / 3 + 2,
}


@pytest.fixture(scope="module")
def compiled():
    done = {}

    def get(name, arch):
        if (name, arch) not in done:
            done[name, arch] = compile_variant(VARIANTS[name], arch)
        return done[name, arch]

    return get


@pytest.mark.parametrize("arch", CARDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_wide_accesses_no_spills_and_no_bytes_beyond_the_minimum(name, arch, compiled):
    kernel = compiled(name, arch)
    assert kernels_report.faults(kernel) == []
    assert kernel.resources.spills == kernel.resources.stack == 0
    assert kernel.bytes_per_element == pytest.approx(BYTES.get(name, kernel.minimum_bytes_per_element), rel=0.05)
    # 128 bits everywhere but where the variant says why not
    narrow = {*kernel.loads, *kernel.stores} != {128}
    assert narrow == bool(kernel.variant.narrow)


def test_the_engines_own_update_moves_128_bits_in_every_access(compiled):
    kernel = compiled("annealed_sgd-fp32", 80)
    # per thread: 8 elements of 3 streams read and 2 written, 4 at a time
    assert (kernel.loads, kernel.stores) == ({128: 6}, {128: 4})
    # a warp's registers come in steps of 256, i.e. 8 a thread; 65536 of them and 64 warps an SM
    registers = -(-kernel.resources.registers // 8) * 8
    assert kernel.occupancy == min(64, 65536 // (registers * 32) // 4 * 4) / 64


def test_faults_are_found(compiled):
    kernel = compiled("annealed_sgd-fp32-unaligned", 80)
    strict = replace(kernel, variant=replace(kernel.variant, load_bits=128, bytes_written=4.0))
    spilling = replace(strict, resources=replace(kernel.resources, stack=8, spills=3))
    assert kernels_report.faults(spilling) == [
        "spills registers: 3 accesses, 8 bytes of stack",
        "loads 12 x 32 bits wide, 128 are possible",
        "moves +25% bytes beside the minimum",
    ]


def test_spills_are_seen_in_the_machine_code(compiled):
    """The same kernel with too few registers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    v = VARIANTS["annealed_sgd-fp64-everything"]
    names = v.kernel.arg_names
    types = {n: v.types.get(n, "constexpr") for n in names}
    source = ASTSource(v.kernel, types, {(names.index(n),): value for n, value in v.constants.items()})
    starved = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"maxnreg": 24, "num_warps": 4})
    resources = read_cubin(starved.asm["cubin"])
    assert resources.registers <= 24 and resources.stack > 0 and resources.spills > 0


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "warps_resident"),
    [
        (80, 32, 0, 4, 64),
        (80, 33, 0, 4, 48),  # 40 registers: 12 warps a scheduler
        (80, 64, 0, 4, 32),
        (80, 255, 0, 8, 8),
        (80, 16, 0, 1, 32),  # 32 blocks
        (80, 32, 48 << 10, 4, 12),  # three blocks of 49 KiB in 164
        (90, 32, 48 << 10, 4, 16),  # four in 228
    ],
)
def test_occupancy(arch, registers, shared, warps, warps_resident):
    """As NVIDIA's occupancy calculator has it."""
    assert CARDS[arch].occupancy(registers, shared, warps) == warps_resident / 64


def test_command_prints_json_and_dumps_what_the_compiler_wrote(tmp_path, monkeypatch, capsys):
    few = [VARIANTS["annealed_sgd-fp32"], VARIANTS["augment-bf16"]]
    monkeypatch.setattr(kernels_report, "variants", lambda: iter(few))
    assert main(["kernels", "--json", "--arch", "80", "--dump", str(tmp_path / "out")]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["kernel"], r["variant"], r["arch"]) for r in rows] == [
        ("annealed_sgd", "fp32", 80),
        ("augment", "bf16", 80),
    ]
    assert rows[0]["load_bits"] == {"128": 6} and rows[0]["faults"] == []
    names = {
        f"{v}-sm_80.{suffix}" for v in ("annealed_sgd-fp32", "augment-bf16") for suffix in ("ttir", "ptx", "cubin")
    }
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert ".target sm_80" in (tmp_path / "out" / "augment-bf16-sm_80.ptx").read_text()

    assert main(["kernels"]) == 0
    text = capsys.readouterr().out
    assert "A100 80GB (sm_80)" in text and "H100 SXM (sm_90)" in text and "loads of single bytes" in text


def test_a_batch_of_one_is_refused(capsys):
    assert main("step --batch 1".split()) == 2
    assert capsys.readouterr().err == "error: --batch 1: must be at least 2\n"


def test_a_folder_that_cannot_be_written_and_an_interpreted_kernel(tmp_path, compiled):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--dump .*file: cannot be written"):
        kernels_report.dump([compiled("augment-bf16", 80)], tmp_path / "file")
    with pytest.raises(RunError, match="unset TRITON_INTERPRET"):
        compile_variant(replace(VARIANTS["augment-bf16"], kernel=lambda: None), 80)
