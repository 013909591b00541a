"""Presets, one per row of the papers' tables and a demonstration: the settings that differ from the defaults.

Source: SEAL, arXiv 2304.04858 (Tiny-ImageNet, ResNet-50, 10 generations of 160 epochs) and its ablations.
"""

from __future__ import annotations

from typing import Any

PAPER: dict[str, Any] = {
    "model": "resnet50",
    "generations": 10,
    "epochs": 160,
    "ascent_epochs": 40,
    "warmup_epochs": 20,
}

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "data": "digits",
        "model": "resnet18",
        "stem": "small",
        "generations": 3,
        "epochs": 6,
        "batch_size": 64,
        "eval_every": 1,
        "amp": True,
        "compile": True,
    },
    "tiny-imagenet-seal": PAPER | {"method": "seal"},
    "tiny-imagenet-llf": PAPER | {"method": "llf"},
    "tiny-imagenet-restart": PAPER | {"method": "restart"},
    "tiny-imagenet-long": PAPER | {"method": "long"},
    "tiny-imagenet-seal+llf": PAPER | {"method": "seal+llf"},
    "tiny-imagenet-reverse": PAPER | {"method": "reverse"},
    "tiny-imagenet-reverse-keep-fc": PAPER | {"method": "reverse-keep-fc"},
    "tiny-imagenet-freeze-late": PAPER | {"method": "freeze-late"},
    "tiny-imagenet-ascend-all": PAPER | {"method": "ascend-all"},
    "tiny-imagenet-ascent-weight-decay": PAPER | {"method": "seal", "ascent_weight_decay": 5e-4},
    "tiny-imagenet-layer2": PAPER | {"method": "seal", "layer_threshold": "layer2"},
    "tiny-imagenet-layer4": PAPER | {"method": "seal", "layer_threshold": "layer4"},
    "tiny-imagenet-ascent-20": PAPER | {"method": "seal", "ascent_epochs": 20},
    "tiny-imagenet-ascent-80": PAPER | {"method": "seal", "ascent_epochs": 80},
    "tiny-imagenet-scale-0.1": PAPER | {"method": "seal", "ascent_scale": 0.1},
    "tiny-imagenet-scale-0.001": PAPER | {"method": "seal", "ascent_scale": 0.001},
}
