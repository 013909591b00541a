"""The augmentation's Triton kernel without a GPU: compiled for sm_80 and sm_90."""

import re

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import create_function_from_signature

from seal_fast.kernels.augment.triton import WARPS, augment_kernel, constants


def test_scalars_never_recompile():
    compiler = triton.compiler.make_backend(GPUTarget("cuda", 80, 32))
    bind = create_function_from_signature(augment_kernel.signature, augment_kernel.params, compiler)
    tensors = [torch.empty(64, dtype=dtype) for dtype in (torch.uint8, torch.int64, torch.bfloat16)]
    fixed = constants((9, 64, 64, 3), 64, (1.0,) * 3, (0.0,) * 3, 4, True, True)
    keys = {str(bind(*tensors, *[scalar] * 5, **fixed)[1]) for scalar in (0, 1, 3, 16, 2**31 - 1, 2**31, 2**40)}
    assert len(keys) == 1


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_stores_are_128_bits_wide(arch, dtype):
    fixed = constants((9, 64, 64, 3), 64, (0.017,) * 3, (-2.0,) * 3, 4, True, True)
    scalars = dict.fromkeys(("count", "seed", "generation", "epoch", "position"), "i64")
    signature = {"images": "*u8", "index": "*i64", "out": f"*{dtype}", **scalars, **dict.fromkeys(fixed, "constexpr")}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    source = ASTSource(
        augment_kernel, signature, {(augment_kernel.arg_names.index(k),): v for k, v in fixed.items()}, aligned
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": WARPS})
    accesses = set(re.findall(r"(?:ld|st)\.(?:global|local|shared)[.\w]*", kernel.asm["ptx"]))
    store = "st.global.v2.b64" if dtype == "fp64" else "st.global.v4.b32"
    assert accesses == {"ld.global.b8", "ld.global.b64", store}  # the pixels, the row's number, the result
