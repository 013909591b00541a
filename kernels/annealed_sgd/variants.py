"""The specialisations of `annealed_sgd_`'s Triton kernel: types, with and without the optional outputs."""

from __future__ import annotations

from collections.abc import Iterator

from seal_fast.kernels.variant import Variant

_BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}
_SCALED = ("grad_scale", "found_inf")
_EVERYTHING = (*_SCALED, "ema", "ema_decay", "bf16", "norms")
_UNALIGNED = "single elements, as a slice may begin at any of them"


def variants() -> Iterator[Variant]:
    """All of them; imports triton."""
    for param, grads in (("fp32", ("fp32",)), ("fp32", ("bf16",)), ("fp64", ("fp64",))):
        name = param if grads == (param,) else f"{param}-grad-{grads[0]}"
        yield _variant(name, param, grads)
        yield _variant(f"{name}-everything", param, grads, _EVERYTHING)
    yield _variant("fp32-amp", "fp32", ("fp32", "bf16"), ("bf16",))
    yield _variant("fp32-scaled", "fp32", ("fp32",), _SCALED)
    yield _variant("fp32-unaligned", "fp32", ("fp32",), aligned=False)


def _variant(
    name: str, param: str, grads: tuple[str, ...], given: tuple[str, ...] = (), aligned: bool = True
) -> Variant:
    from seal_fast.kernels.annealed_sgd import triton as launcher

    optional = {
        "grad_scale": "*fp32",
        "found_inf": "*fp32",
        "ema": f"*{param}",
        "ema_decay": "*fp64",
        "bf16": "*bf16",
        "norms": "*fp64",
    }
    tables = {"grads": "*i64", "tiles": "*i64", "hyper": "*fp64"}
    # Where both types of gradient occur, the wider one is counted.
    p, g = _BYTES[param], max(_BYTES[kind] for kind in grads)
    ema, bf16 = p * ("ema" in given), _BYTES["bf16"] * ("bf16" in given)
    return Variant(
        op="annealed_sgd",
        name=name,
        kernel=launcher.annealed_sgd_kernel,
        types={"param": f"*{param}", "momentum_buffer": f"*{param}", **tables, **{k: optional[k] for k in given}},
        constants={
            **{k: None for k in optional if k not in given},
            "OWN": param in grads,
            "BF16": "bf16" in grads,
            "ALIGNED": aligned,
            "BLOCK": launcher.BLOCK,
            "TAIL": launcher.TAIL,
        },
        warps=launcher.WARPS,
        # A tile that is not aligned goes through the loop for tails.
        elements=launcher.BLOCK if aligned else launcher.TAIL,
        bytes_read=2 * p + g + ema,
        bytes_written=2 * p + ema + bf16,
        aligned=aligned,
        load_bits=128 if aligned else 8 * min(p, g),
        store_bits=128 if aligned else 8 * p,
        narrow="" if aligned else _UNALIGNED,
    )
