from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Recipe, train
from runs import EXACT
from safetensors.torch import load_file

from seal_fast.models import generator
from seal_fast.runs.folder import RunFolder
from seal_fast.train import run
from seal_fast.training import assembly, checkpoint, evaluation
from seal_fast.training.forgetting import Leaf
from seal_fast.training.step import true_class_rank
from seal_fast.utils.errors import RunError


def read_images(folder):
    """Images in sorted path order, decoded by Pillow, normalised with ImageNet's mean and standard deviation."""
    from PIL import Image

    paths = sorted((folder / "train").glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(p)) for p in paths]).astype(np.float64) / 255
    pixels = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    labels = torch.tensor([int(p.parent.name.removeprefix("class")) for p in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def oracle(config, folder):
    model = assembly.build(config.model, 4, config.stem, config.seed).double()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def redraw(name, generation):
        fan_in = shapes[name][1:].numel()
        leaf = Leaf(name, torch.empty(shapes[name]), "weight", fan_in)
        return leaf.draw(config.reinit, generator(config.seed, f"reinitialise {generation} {name}")).double()

    recipe = Recipe(
        method=config.method,
        generations=config.generations,
        epochs=config.epochs,
        ascent_epochs=config.ascent(),
        warmup_epochs=config.warmup(),
        threshold=config.layer_threshold,
        batch_size=config.batch_size,
        lr=config.lr,
        scale=config.ascent_scale,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        ascent_weight_decay=config.ascent_weight_decay,
        label_smoothing=config.label_smoothing,
    )
    return train(model, *read_images(folder), recipe, redraw)


def assert_equals_oracle(config, folder, out):
    run(replace(config, data=str(folder), out=out))
    weights = load_file(RunFolder(out).weights("last"))
    saved = checkpoint.load(RunFolder(out).checkpoint).tensors
    expected = oracle(config, folder)
    for name, tensor in expected.items():
        own = saved[name] if name.startswith("momentum.") else weights[name]
        torch.testing.assert_close(own, tensor, rtol=1e-10, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


# 20 images in batches of 8: the last batch of an epoch is a smaller one. The learning rate keeps rounding errors from
# growing: at 0.1 this tiny problem is chaotic, and two orders of summation part ways after some twenty steps.
METHODS = ("seal", "llf", "seal+llf", "restart", "long", "reverse", "reverse-keep-fc", "freeze-late", "ascend-all")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_the_float64_oracle(method, image_folder, tmp_path, shallow_network):
    assert_equals_oracle(replace(EXACT, epochs=2, method=method, eval_every=9), image_folder, tmp_path / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_threshold": "layer2.0"},
        {"ascent_epochs": 2, "ascent_scale": 0.1, "ascent_weight_decay": 1e-3},
        {"method": "llf", "reinit": "he-normal", "layer_threshold": "layer4"},
        {"method": "restart", "momentum": 0.0, "label_smoothing": 0.0, "warmup_epochs": 2},
    ],
    ids=str,
)
def test_other_settings_equal_the_oracle(changes, image_folder, tmp_path, shallow_network):
    assert_equals_oracle(replace(EXACT, generations=2, **changes), image_folder, tmp_path / "run")


def test_metrics_rows_tell_the_timeline(image_folder, tmp_path, small_network):
    out = tmp_path / "run"
    summary = run(replace(EXACT, data=str(image_folder), out=out, eval_every=2, keep="ascents", lr=0.1))
    rows = RunFolder(out).rows()
    assert [(r["generation"], r["epoch"], r["phase"]) for r in rows] == [
        (g, e, "ascent" if g and e == 0 else "descent") for g in range(3) for e in range(3)
    ]
    ascent, descent = rows[3], rows[4]
    assert (ascent["lr_early"], ascent["lr_late"], ascent["direction_early"]) == (pytest.approx(1e-3), 0.1, -1)
    assert descent["lr_early"] == descent["lr_late"] == pytest.approx(0.1) and descent["direction_early"] == 1
    # evaluated every second epoch and at the end of each phase
    assert [r["val_top1"] is not None for r in rows] == [False, True, True, True, True, True, True, True, True]
    assert all(r["images"] == 20 and r["images_per_s"] > 0 for r in rows)
    assert summary["best"]["val_top1"] == max(r["val_top1"] or 0 for r in rows)
    phases = [[p["phase"] for p in g["phases"]] for g in summary["generations"]]
    assert phases == [["descent"], ["ascent", "descent"], ["ascent", "descent"]]
    names = {p.name for p in (out / "weights").iterdir()}
    kept = {f"generation-{g}.safetensors" for g in range(3)} | {f"generation-{g}-ascent.safetensors" for g in (1, 2)}
    assert names == kept | {"last.safetensors", "best.safetensors"}
    for name in ("config.toml", "summary.json", "curves.png", "tensorboard"):
        assert (out / name).exists()


def test_training_metrics_equal_a_direct_count(image_folder, tmp_path, shallow_network):
    """With a learning rate of 0 the network stands still, so an epoch's sums can be counted again outside."""
    import torch.nn.functional as F

    out = tmp_path / "run"
    config = replace(EXACT, data=str(image_folder), out=out, generations=1, epochs=1, ascent_epochs=0, lr=0.0)
    run(replace(config, warmup_epochs=0))
    row = RunFolder(out).rows()[0]
    model = assembly.build("resnet18", 4, config.stem, config.seed).double().train()
    images, labels = read_images(image_folder)
    loss, right = 0.0, 0
    for x, y in zip(images.split(8), labels.split(8), strict=True):
        logits = model(x)
        loss += F.cross_entropy(logits, y, label_smoothing=0.1, reduction="sum").item()
        right += (logits.argmax(1) == y).sum().item()
    assert row["train_loss"] == pytest.approx(loss / 20, rel=1e-9)
    assert row["train_top1"] == pytest.approx(100 * right / 20)


def test_hits_rank_like_argmax_and_topk():
    torch.manual_seed(0)
    logits, labels = torch.randn(500, 12), torch.randint(0, 12, (500,))
    rank = true_class_rank(logits, labels)
    assert torch.equal(rank < 1, logits.argmax(1) == labels)
    assert torch.equal(rank < 5, (logits.topk(5).indices == labels[:, None]).any(1))
    # a constant network is right as often as its first class occurs, not always
    assert torch.equal(true_class_rank(torch.zeros(12, 12), torch.arange(12)), torch.arange(12))


def test_a_comparison_with_nan_is_a_miss():
    nan = float("nan")
    logits = torch.tensor([[nan, nan, nan], [nan, 2.0, 1.0], [3.0, nan, 1.0], [nan, 5.0, 1.0]])
    labels = torch.tensor([0, 0, 0, 1])
    rank = true_class_rank(logits, labels)
    assert (rank[:2] >= 5).all()  # not even among the first five of three
    assert rank[2:].tolist() == [1, 1]  # a finite logit is behind every NaN
    assert true_class_rank(torch.full((1, 200), nan), torch.tensor([7])).item() >= 200


def test_a_validation_loss_that_is_not_finite_stops_before_row_and_best(
    image_folder, tmp_path, shallow_network, monkeypatch
):
    """Weights and training loss stay finite here; only the running statistics that evaluation reads do not."""
    out = tmp_path / "run"
    evaluate = evaluation.evaluate

    def overflow(self):
        if self.state.position.epoch == 1:
            next(b for n, b in self.state.model.named_buffers() if n.endswith("running_var")).fill_(float("nan"))
        return evaluate(self)

    monkeypatch.setattr(evaluation, "evaluate", overflow)
    with pytest.raises(RunError, match="validation loss is NaN or infinite in generation 0, epoch 1"):
        run(replace(EXACT, data=str(image_folder), out=out, checkpoint_seconds=0))
    folder = RunFolder(out)
    assert [row["epoch"] for row in folder.rows()] == [0]
    saved = checkpoint.load(folder.checkpoint)
    assert saved.plain["best"]["epoch"] == 0
    assert all(t.isfinite().all() for t in saved.tensors.values() if t.is_floating_point())


def test_the_settings_are_written_for_tensorboards_hparams_page(image_folder, tmp_path, shallow_network):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    summary = run(
        replace(EXACT, data=str(image_folder), out=tmp_path / "run", generations=1, epochs=1, ascent_epochs=0)
    )
    events = EventAccumulator(str(RunFolder(tmp_path / "run").tensorboard)).Reload()
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["lr"].number_value == 0.01 and hparams["method"].string_value == "seal"
    assert events.Scalars("final/best_val_top1")[-1].value == pytest.approx(summary["best"]["val_top1"])
    assert events.Scalars("val/top1")[-1].value == pytest.approx(summary["last"]["val_top1"])


def test_streamed_and_resident_input_train_alike(image_folder, tmp_path, shallow_network):
    """Order and augmentation depend on the position only, so where the images are decoded changes nothing."""
    config = replace(EXACT, data=str(image_folder), generations=2, augmentation="pad-crop", shuffle=True)
    for kind in ("resident", "stream"):
        run(replace(config, input=kind, out=tmp_path / kind))
    resident, stream = (load_file(RunFolder(tmp_path / kind).weights("last")) for kind in ("resident", "stream"))
    assert all(torch.equal(resident[name], stream[name]) for name in resident)
