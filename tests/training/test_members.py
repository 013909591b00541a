"""Every method against its own literal float64 oracle (tests/helpers/members.py): three generations."""

from dataclasses import replace

import members
import numpy as np
import pytest
import torch
from members import Literal, each_generation
from runs import EXACT, trainer_of
from small_resnet import build, build_shallow

from seal_fast import methods
from seal_fast.training import assembly

TINY = replace(EXACT, epochs=2, limit_train=12, eval_every=100, keep="none", method="restart", wandb=False)
SEAL = dict(method="seal", epochs=3, ascent_epochs=2, ascent_scale=0.1)

# name: the settings, the oracle
MEMBERS = {
    "ke-wels": (dict(option="keep=0.6"), each_generation(members.ke_wels)),
    "ke-wels anew": (dict(option="anew=true"), each_generation(members.ke_wels_anew)),
    "ke-kels": (dict(option="keep=0.6"), each_generation(members.ke_kels)),
    "fc-reset": (dict(), each_generation(members.fc_reset, fresh=False)),
    "fc-reset initial": (dict(option="initial=true"), each_generation(members.fc_reset_initial)),
    "zapping": (dict(option="rows=2"), members.zapping),
    "rifle": (dict(), members.rifle(cyclic=False)),
    "rifle cyclic": (dict(option="cyclic=true"), members.rifle(cyclic=True)),
    "shrink-perturb": (dict(), each_generation(members.ash_adams)),
    "shrink-perturb initial": (dict(option="kind=initial"), each_generation(members.shrink_to_initial)),
    "shrink-perturb noise": (dict(option="kind=noise"), each_generation(members.shrink_and_noise, fresh=False)),
    "lw": (dict(), each_generation(members.lw)),
    "fire": (dict(), each_generation(members.fire)),
    "dsd": (dict(), members.dsd),
    "ac-dc": (dict(option="warm=1,sparse=2,dense=1"), members.acdc),
    "imp": (dict(), members.imp),
    "perturb": (dict(), each_generation(members.ke_wels_anew)),
    "perturb magnitude": (dict(option="kind=magnitude"), each_generation(members.perturb_magnitude)),
    "born-again": (dict(option="weight=0.5,temperature=2"), members.born_again),
    "sgdr": (dict(option="growth=1.5"), members.sgdr),
    "hare-tortoise": (dict(option="decay=0.9,every=2"), members.hare_tortoise),
    "swa": (dict(option="start=0.7"), members.swa),
    "sam": (dict(option="rho=0.1"), members.sam(0.1, adaptive=False)),
    "asam": (dict(option="rho=0.5"), members.sam(0.5, adaptive=True)),
    "dash": (dict(), each_generation(members.dash, fresh=False)),
    "dnr": (dict(), each_generation(members.dnr)),
    "seal annealed": (SEAL | dict(option="scale_end=0.02"), members.seal(lambda g: "layer3", lambda e: [0.1, 0.02][e])),
    "seal moving": (
        SEAL | dict(option="thresholds=layer2.0/layer4"),
        members.seal(lambda g: ["", "layer2.0", "layer4"][g]),
    ),
    "seal errors": (
        SEAL | dict(option="confidence=0.3,smoothing=0"),
        members.seal(lambda g: "layer3", losses=members.errors_only),
    ),
}

DEEP = {"lw"}  # their blocks are named


def test_every_method_has_an_oracle():
    old = {"seal", "llf", "seal+llf", "restart", "long", "reverse", "reverse-keep-fc", "freeze-late", "ascend-all"}
    assert {name.split()[0] for name in MEMBERS} | old == set(methods.METHODS)


@pytest.fixture(scope="module")
def tiny(image_folder):
    """The first images in sorted path order that --limit-train 12 takes, normalised, and their classes."""
    from PIL import Image

    paths = sorted((image_folder / "train").glob("*/*.png"))
    paths = [paths[i * len(paths) // 12] for i in range(12)]
    pixels = np.stack([np.asarray(Image.open(p)) for p in paths]).astype(np.float64) / 255
    pixels = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    labels = torch.tensor([int(p.parent.name.removeprefix("class")) for p in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


@pytest.mark.parametrize("name", MEMBERS)
def test_equals_its_literal_oracle(name, image_folder, tmp_path, monkeypatch, tiny):
    changes, oracle = MEMBERS[name]
    network = build if name in DEEP else build_shallow
    monkeypatch.setattr(assembly, "build", network)
    config = replace(TINY, data=str(image_folder), **{"method": name.split()[0], **changes})
    with trainer_of(config, tmp_path / "run") as trainer:
        trainer.run()
    state = trainer.state
    t = Literal(network("resnet18", 4, "small", config.seed).double(), *tiny, config.seed, epochs=config.epochs)
    oracle(t)
    expected = {**t.p, **t.stats, **{f"momentum {name}": b for name, b in t.buf.items()}}
    momentum = {f"momentum {name}": b for name, b in state.optimizer.momentum_state().items()}
    average = {f"average {name}": v for name, v in getattr(t, "average", {}).items()}
    found = {**state.model.state_dict(), **momentum}
    if state.ema:
        found |= {f"average {name}": v for name, v in state.ema.state_dict().items()}
    for key, value in {**expected, **average}.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-11, msg=lambda m, key=key: f"{key}: {m}")
