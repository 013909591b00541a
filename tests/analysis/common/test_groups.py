from dataclasses import replace

from pretend import pretend_run

from seal_fast.analysis.common.groups import Member, members
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.config import Config

BASE = Config(data="/a/images.tar", generations=2, epochs=2, ascent_epochs=1)


def network(folder, config, stage="last"):
    return TrainedNetwork(
        folder.name, folder / "weights" / f"{stage}.safetensors", "resnet18", "imagenet", 5, 64, config, stage
    )


def test_a_network_belongs_to_its_training_and_counts_once_for_a_seed_and_stage(tmp_path):
    configs = {"s0": BASE, "s1": replace(BASE, seed=1), "again": BASE, "l0": replace(BASE, method="llf")}
    for name, config in configs.items():
        pretend_run(tmp_path / name, config, 50)
    pretend_run(tmp_path / "half", replace(BASE, seed=2), 50, generations=1)
    found = [network(tmp_path / name, config) for name, config in configs.items()]
    found += [network(tmp_path / "again", BASE, "generation-0"), network(tmp_path / "half", BASE)]
    bare = replace(found[0], config=None, stage="")
    assert members([*found, bare, bare]) == [
        Member("seal"), Member("seal"), Member("again", "the same training and seed as s0"), Member("llf"),
        Member("seal"), Member("half", "its run is unfinished"), Member("s0"), Member("s0 (2)"),
    ]  # fmt: skip
