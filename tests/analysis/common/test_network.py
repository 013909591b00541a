import pytest
import safetensors
import torch
from safetensors.torch import save_file
from small_resnet import build_by_name as build

from seal_fast.analysis.common.images import own_images
from seal_fast.analysis.common.network import checkpoints, load_checkpoints, open_network
from seal_fast.data import make_input, open_images
from seal_fast.data.batches import batches, choose
from seal_fast.utils.errors import RunError, UsageError


def test_a_run_says_itself_what_it_is(folder):
    network = open_network(folder)
    assert (network.name, network.model, network.stem) == ("seal-0", "resnet18", "small")
    assert (network.num_classes, network.image_size, network.config.batch_size) == (4, 16, 6)
    assert open_network(folder, stage="generation-0").name == "seal-0 generation-0"
    assert open_network(folder / "weights" / "best.safetensors").config is None


def test_the_network_is_the_one_trained(folder):
    network = open_network(folder).load(dtype=torch.float64)
    model = build("resnet18", 4, "small", seed=5).double().eval()
    from seal_fast.models import load_weights

    load_weights(model, folder / "weights" / "last.safetensors")
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(network(x), model(x), rtol=1e-12, atol=1e-12)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_checkpoints_come_in_the_order_of_training(folder):
    names = ["generation-0", "generation-1-ascent", "generation-1"]
    assert checkpoints(folder) == names
    assert [network.stage for network in load_checkpoints(folder)] == names


def test_a_bare_file_takes_the_flags(tmp_path):
    weights = build("resnet34", 7, "small").state_dict()
    save_file(weights, tmp_path / "bare.safetensors")
    network = open_network(tmp_path / "bare.safetensors", model="resnet34", stem="small", image_size=32)
    assert (network.num_classes, network.image_size) == (7, 32)
    network.load()
    save_file({k: v for k, v in weights.items() if not k.startswith("fc.")}, tmp_path / "backbone.safetensors")
    backbone = open_network(tmp_path / "backbone.safetensors", model="resnet34", stem="small")
    assert backbone.num_classes == 0
    backbone.load()


def test_weights_are_read_where_there_is_no_mmap(folder, monkeypatch):
    expected = open_network(folder).load().state_dict()

    def no_mmap(*_):
        raise safetensors.SafetensorError("I/O error: No such device (os error 19)")

    monkeypatch.setattr(safetensors, "safe_open", no_mmap)
    network = open_network(folder)
    assert (network.num_classes, network.image_size, network.stem) == (4, 16, "small")
    for name, tensor in network.load().state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_bad_input_ends_in_a_sentence(folder, tmp_path):
    with pytest.raises(UsageError, match="no such run folder or weights file"):
        open_network(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no run folder"):
        open_network(tmp_path)
    with pytest.raises(UsageError, match="it keeps generation-0, generation-1-ascent, generation-1"):
        open_network(folder, stage="generation-7")
    with pytest.raises(UsageError, match="--model resnet50: .* of resnet18"):
        open_network(folder, model="resnet50")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="not a readable safetensors file"):
        open_network(tmp_path / "broken.safetensors")
    save_file(build("resnet34", 7).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="another architecture"):
        open_network(tmp_path / "other.safetensors").load()


def test_images_are_those_of_evaluation_in_sorted_order(image_folder):
    images = open_images(image_folder)
    settings = {"image_size": 16, "batch_size": 8, "eval_batch_size": 12}
    whole = next(make_input(images, "resident", **settings).evaluation())
    chosen = choose(images, "val", 7)
    parts = list(batches(images, chosen, image_size=16, batch_size=3))
    assert [len(labels) for _, labels in parts] == [3, 3, 1]
    torch.testing.assert_close(torch.cat([x for x, _ in parts]), whole.images[:7], rtol=0, atol=0)
    assert torch.cat([y for _, y in parts]).tolist() == images.val.labels[:7].tolist()
    assert choose(images, "train", 4, spread=True).labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="13 images asked for: the val split of .* has 12"):
        choose(images, "val", 13)


def test_own_images_are_the_runs_own(folder, image_folder, tmp_path):
    images, whole = own_images(open_network(folder)), open_images(image_folder)
    assert images.train.names == whole.train.spread(12).names and images.val.names == whole.val.names
    with pytest.raises(UsageError, match="has 10 classes and seal-0 tells 4 apart"):
        own_images(open_network(folder), "digits")
    with pytest.raises(UsageError, match="name them with --data"):
        own_images(open_network(folder / "weights" / "last.safetensors"))
