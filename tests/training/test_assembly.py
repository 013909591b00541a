"""A trainer's parts: images that weights are scored on, and the initial weights of a run that is resumed."""

import shutil
from dataclasses import replace

import pytest
import torch
from runs import BASE, EXACT, trainer_of
from safetensors.torch import save_file
from small_resnet import build_shallow

from seal_fast.config import Config, load
from seal_fast.kernels import philox
from seal_fast.runs.folder import RunFolder
from seal_fast.train import main, run
from seal_fast.utils.errors import UsageError


def test_weights_are_scored_on_images_as_in_training_or_evaluation(image_folder, tmp_path, shallow_network):
    config = replace(EXACT, data=str(image_folder), method="dnr", augmentation="pad-crop", shuffle=True)
    with trainer_of(config, tmp_path / "run") as trainer:
        augmented = list(trainer.images(8, 0.5, True, 1, 2))
        assert [len(labels) for _, labels in augmented] == [8, 2]  # half of 20
        for (images, labels), batch in zip(augmented, trainer.input.train(1, 2), strict=False):
            assert torch.equal(images, batch.images[: len(labels)]) and torch.equal(labels, batch.labels[: len(labels)])
        ((images, labels),) = trainer.images(1000, 1.0, False, 1, 2)
        order = philox.permutation(20, config.seed, 1, 2, "cpu")
        whole = [(batch.images[batch.valid], batch.labels[batch.valid]) for batch in trainer.input.evaluation("train")]
        assert torch.equal(images, torch.cat([x for x, _ in whole])[order])
        assert torch.equal(labels, torch.cat([y for _, y in whole])[order])


def test_a_resumed_run_has_the_initial_weights_that_it_began_with(image_folder, tmp_path, shallow_network):
    for seed in (1, 2):
        save_file(build_shallow("", 4, seed=seed).state_dict(), tmp_path / f"{seed}.safetensors")
    first, other = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    short = {"generations": 1, "epochs": 1, "ascent_epochs": 0, "warmup_epochs": 0}
    config = replace(BASE, data=str(image_folder), out=tmp_path / "run", init_weights=first, **short)
    run(config)
    with pytest.raises(UsageError, match=r"--init-weights .*2\.safetensors: the run in .*run began with other weights"):
        run(replace(config, init_weights=other))
    with pytest.raises(UsageError, match="other settings: --init-fc: True -> False"):
        run(replace(config, init_fc=False))
    first = shutil.move(first, tmp_path / "moved.safetensors")
    run(replace(config, init_weights=first))
    assert load(RunFolder(config.out).config, Config()).init_weights == first
    first.unlink()
    assert main(["--out", str(config.out)]) == 0  # the checkpoint holds all that this method needs

    perturbed = replace(config, init_weights=other, method="shrink-perturb", option="kind=initial", generations=2)
    perturbed = replace(perturbed, out=tmp_path / "perturbed")
    run(perturbed)
    with pytest.raises(UsageError, match="no --init-weights: the run in"):
        run(replace(perturbed, init_weights=None))
