"""`Annealer` on a loop of one's own: against the program to the bit, a literal loop, and itself interrupted."""

import copy
import io
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from runs import BASE, trainer_of
from safetensors.torch import load_file
from small_resnet import build_shallow
from torch import nn

from seal_fast import Annealer
from seal_fast.train import run
from seal_fast.utils.errors import UsageError

# Cleared momentum; kept masks and snapshots; averages by epoch; two passes; scores.
METHODS = ["seal", "imp", "swa", "sam", "dash"]
NUMBERS = dict(generations=3, epochs=2, ascent_epochs=1, warmup_epochs=1)


def annealer_of(model, config, trainer):
    scores = None
    if trainer.images:
        loader = [*trainer.images(1000, 1.0, False, 0, 0)]
        scores = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), loader
    example = torch.zeros(2, 3, trainer.input.image_size, trainer.input.image_size)  # SAM's norm adds up in this order
    numbers = dict(lr=config.lr, seed=config.seed, example=example, **NUMBERS)
    return Annealer(model, config.method, threshold=config.layer_threshold, scores=scores, **numbers)


def train(annealer, model, batches, smoothing, until=None):
    """A loop as a user writes it; stops after the epoch `until`."""
    for epoch in annealer:
        model.train()
        for batch in batches(epoch.generation, epoch.epoch, 0):

            def closure(batch=batch):
                logits = model(batch.images)
                losses = F.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=smoothing)
                losses.mean().backward()
                return float(losses.detach().mean())

            if annealer.timeline.method == "sam":
                assert 0 < annealer.step(closure=closure) < 10
            else:
                closure()
                annealer.step()
            annealer.zero_grad()
        if (epoch.generation, epoch.epoch) == until:
            return


def network(trainer, config):
    model = build_shallow(config.model, trainer.input.num_classes, stem=config.stem, seed=config.seed)
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_program_to_the_bit_also_when_interrupted(method, image_folder, tmp_path, shallow_network):
    config = replace(BASE, method=method, data=str(image_folder), keep="none", shuffle=method != "dash")
    config = replace(config, **NUMBERS)
    run(replace(config, out=tmp_path / "program"))
    expected = load_file(tmp_path / "program" / "weights" / "last.safetensors")

    def compare(model):
        own = model.state_dict().items()  # swa measures statistics anew, which counts batches
        wrong = [name for name, t in own if not torch.equal(expected[name], t)]
        assert [name for name in wrong if method != "swa" or not name.endswith("num_batches_tracked")] == []

    with trainer_of(config, tmp_path / "other") as trainer:
        batches, smoothing = trainer.input.train, config.label_smoothing
        model = network(trainer, config)
        train(annealer_of(model, config, trainer), model, batches, smoothing)
        compare(model)
        model = network(trainer, config)
        first = annealer_of(model, config, trainer)
        train(first, model, batches, smoothing, until=(1, 0))
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "annealer": first.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        model = network(trainer, config)
        second = annealer_of(model, config, trainer)
        model.load_state_dict(saved["model"])
        second.load_state_dict(saved["annealer"])
        train(second, model, batches, smoothing)
        compare(model)


def test_a_network_of_ones_own_against_a_literal_loop():
    """SEAL on a perceptron in float64: the first layers climb at a hundredth of the rate, without decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3
    literal = copy.deepcopy(model)
    for generation in range(3):
        for epoch, rate in enumerate([0.05, 0.1, 0.1, 0.05]):  # two epochs of warm-up, then half a cosine over two
            ascent = generation > 0 and epoch == 0
            if ascent or epoch == 1 and generation > 0 or generation == epoch == 0:
                buffers = [torch.zeros_like(p) for p in literal.parameters()]
            grads = torch.autograd.grad(F.cross_entropy(literal(x), y), [*literal.parameters()])
            for i, (p, grad) in enumerate(zip(literal.parameters(), grads, strict=True)):
                climbs = ascent and i < 4
                buffers[i] = 0.9 * buffers[i] + grad + (0.0 if climbs else 5e-4) * p.detach()
                p.data += (0.01 if climbs else -1.0) * rate * buffers[i]
    annealer = Annealer(model, generations=3, epochs=4, threshold="3", ascent_epochs=1, warmup_epochs=2, lr=0.1)
    phases = []
    for epoch in annealer:
        F.cross_entropy(model(x), y).backward()
        annealer.step()
        annealer.zero_grad()
        phases.append(epoch.phase)
    assert phases == ["descent"] * 4 + (["ascent"] + ["descent"] * 3) * 2
    for p, expected in zip(model.parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)


def test_a_gradient_scaler_changes_nothing_but_rounding():
    def trained(scaler):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        x, y = torch.randn(10, 4), torch.arange(10) % 2
        annealer = Annealer(model, generations=2, epochs=3, threshold="2", warmup_epochs=1, ema=0.5)
        for _ in annealer:
            loss = F.cross_entropy(model(x), y)
            (scaler.scale(loss) if scaler else loss).backward()
            annealer.step(scaler)
            annealer.zero_grad()
        with annealer.averaged():
            return [p.detach().clone() for p in model.parameters()]

    for a, b in zip(trained(None), trained(torch.amp.GradScaler("cpu")), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sael"}, "method 'sael' does not exist; choose one of seal, "),
        ({"method": "born-again"}, "born-again needs a loss of its own"),
        ({"method": "dnr"}, "dnr scores weights by gradients: give scores=(loss, loader)"),
        ({"example": torch.zeros(2, 3)}, "example: the model fails on it (mat1 and mat2 shapes"),
        ({"threshold": "layer9"}, "threshold layer9: the model has no such layer"),
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
    ],
)
def test_what_cannot_be_done_is_said(settings, message):
    with pytest.raises(UsageError) as error:
        Annealer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), **{"threshold": "1"} | settings)
    assert message in str(error.value)


class Backwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(8, 3), nn.Linear(6, 8)

    def forward(self, x, factor):
        return self.head(self.body(x) * factor)


def test_early_and_late_follow_the_pass_over_an_example():
    def groups(threshold, **settings):
        return Annealer(Backwards(), threshold=threshold, **settings).partition.groups

    names = {part: (f"{part}.weight", f"{part}.bias") for part in ("head", "body")}
    assert groups("body") == {"early": names["head"], "late": names["body"]}
    assert groups("head", example=(torch.zeros(2, 6), 2.0)) == {"early": names["body"], "late": names["head"]}


def test_sam_without_a_closure_is_refused():
    annealer = Annealer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "sam", threshold="1")
    with pytest.raises(UsageError, match=r"sam takes two passes a step: annealer.step\(closure=...\)"):
        annealer.step()


def test_a_state_of_another_timeline_is_refused():
    def made(epochs):
        return Annealer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), epochs=epochs, threshold="1")

    longer = made(9)
    for epoch in longer:
        if epoch.epoch == 7:
            break
    with pytest.raises(UsageError, match="the state is at generation 0, epoch 7, step 0, which this timeline"):
        made(6).load_state_dict(longer.state_dict())
