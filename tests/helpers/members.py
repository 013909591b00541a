"""The forget-and-relearn methods written out literally in float64, from their papers' and codes' descriptions.

Nothing of the trainer, the optimiser or the operators is used: plain loops over tensors. Only the network's forward
pass and the numbers of a draw, a function of its key, are the package's (both are tested elsewhere).
"""

import copy
import math

import torch
import torch.nn.functional as F

from seal_fast.models import generator

LR, MOMENTUM, DECAY, SMOOTHING = 0.01, 0.9, 5e-4, 0.1


class Literal:
    """A network in float64, its momentum buffers, and SGD on fixed images in a fixed order."""

    def __init__(self, model, images, labels, seed, batch=8, generations=3, epochs=2, warmup=1):
        self.model, self.images, self.labels, self.seed, self.batch = model, images, labels, seed, batch
        self.G, self.E, self.W = generations, epochs, warmup
        self.p = {name: p.data for name, p in model.named_parameters()}
        self.stats = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
        self.buf = {name: torch.zeros_like(p) for name, p in self.p.items()}
        self.weights = [name for name, p in self.p.items() if p.ndim > 1]  # convolutions and fc
        self.initial = {name: p.clone() for name, p in self.p.items()}
        self.losses = lambda logits, x, y: F.cross_entropy(logits, y, label_smoothing=SMOOTHING)

    def batches(self, size=None):
        size = size or self.batch
        return [(self.images[i : i + size], self.labels[i : i + size]) for i in range(0, len(self.images), size)]

    def cosine(self, epoch, epochs, warmup=None, lr=LR):
        warmup = self.W if warmup is None else warmup
        if epoch < warmup:
            return lr * (epoch + 1) / warmup
        return lr / 2 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))

    def fresh(self):
        for buf in self.buf.values():
            buf.zero_()

    def gradient(self, x, y):
        loss = self.losses(self.model(x), x, y)
        return dict(zip(self.p, torch.autograd.grad(loss, list(self.model.parameters())), strict=True))

    def epoch(self, lr, rate=lambda name: 1.0, decay=lambda name: DECAY, held=None, gradient=None, after=None):
        """One epoch; rate: signed factor by name, positive descends. held: where weights stay zero, by name."""
        self.model.train()
        for x, y in self.batches():
            gradients = (gradient or self.gradient)(x, y)
            for name, p in self.p.items():
                g = gradients[name] + decay(name) * p
                if held and name in held:
                    g[held[name]] = 0.0
                self.buf[name].mul_(MOMENTUM).add_(g)
                p -= rate(name) * lr * self.buf[name]
            if after:
                after()

    def generation(self, **how):
        for e in range(self.E):
            self.epoch(self.cosine(e, self.E), **how)

    def random(self, purpose, name, g, epoch=0, operator=0):
        key = (
            f"{purpose} {g} {name}"
            + (f" epoch {epoch}" if epoch else "")
            + (f" operator {operator}" if operator else "")
        )
        return generator(self.seed, key)

    def uniform(self, name, *when):
        """kaiming_uniform(a=sqrt(5)): uniform in +-1/sqrt(fan_in), for biases too."""
        fan_in = self.p[name.replace("bias", "weight")][0].numel()
        bound = 1 / math.sqrt(fan_in)
        return (
            torch.empty(self.p[name].shape)
            .uniform_(-bound, bound, generator=self.random("reinitialise", name, *when))
            .double()
        )

    def normal(self, name, *when):
        """He-normal."""
        std = math.sqrt(2 / self.p[name][0].numel())
        return (
            torch.empty(self.p[name].shape).normal_(0, std, generator=self.random("reinitialise", name, *when)).double()
        )

    def new(self, name, *when):
        """A newly built network's value of a parameter."""
        if name in self.weights:
            return self.normal(name, *when)
        if name == "fc.bias":
            return self.uniform(name, *when)
        return torch.ones_like(self.p[name]) if name.endswith("weight") else torch.zeros_like(self.p[name])

    def new_statistics(self):
        for name, b in self.stats.items():
            b.fill_(1.0 if name.endswith("running_var") else 0.0)

    def smallest(self, values, share):
        """True for the lowest share of elements, of equal ones the first."""
        flat = torch.cat([v.flatten() for v in values])
        lowest = flat.argsort(stable=True)[: int(share * len(flat) + 1e-6)]
        chosen = torch.zeros(len(flat), dtype=torch.bool).index_fill_(0, lowest, True)
        return [c.view(v.shape) for c, v in zip(chosen.split([v.numel() for v in values]), values, strict=True)]

    def plain_gradients(self, size):
        """Of the cross entropy without smoothing, in eval mode, batch after batch."""
        self.model.eval()
        for x, y in self.batches(size):
            loss = F.cross_entropy(self.model(x), y)
            yield dict(zip(self.p, torch.autograd.grad(loss, list(self.model.parameters())), strict=True))


def each_generation(forget, fresh=True):
    """Forget at the start of every generation after the first, then train."""

    def train(t):
        for g in range(t.G):
            if g:
                forget(t, g)
                if fresh:
                    t.fresh()
            t.generation()

    return train


def ke_wels(t, g):
    for name in t.weights:
        forgotten = torch.rand(t.p[name].shape, generator=generator(t.seed, f"mask {name}")) < 0.4
        t.p[name].copy_(torch.where(forgotten, t.uniform(name, g), t.p[name]))


def ke_wels_anew(t, g):
    for name in t.weights:
        forgotten = torch.rand(t.p[name].shape, generator=t.random("mask", name, g)) < 0.5
        t.p[name].copy_(torch.where(forgotten, t.uniform(name, g), t.p[name]))


def ke_kels(t, g):
    r = 0.6
    for name in t.weights:
        p = t.p[name]
        rows, columns = math.ceil(r * p.shape[0] - 1e-9), math.ceil(r * p.shape[1] - 1e-9)
        drawn = t.uniform(name, g)
        if name == "conv1.weight":
            drawn[:rows] = p[:rows]
        elif name == "fc.weight":
            drawn[:, :columns] = p[:, :columns]
        else:
            drawn[:rows, :columns] = p[:rows, :columns]
        p.copy_(drawn)


def fc_reset(t, g):
    for name in ("fc.weight", "fc.bias"):
        t.p[name].copy_(t.uniform(name, g))


def fc_reset_initial(t, g):
    for name in ("fc.weight", "fc.bias"):
        t.p[name].copy_(t.initial[name])


def zapping(t):
    n, total = 2, t.G * t.E
    for e in range(total):
        if e and e % t.E == 0:
            p = t.p["fc.weight"]
            rows = torch.randperm(len(p), generator=t.random("mask", "fc.weight", 0, e))[:n]
            p[rows] = (t.normal("fc.weight", 0, e) / math.sqrt(n))[rows]
        t.epoch(t.cosine(e, total))


def rifle(cyclic):
    def train(t):
        total = t.G * t.E
        for e in range(total):
            if e and e % t.E == 0:
                for name in ("fc.weight", "fc.bias"):
                    t.p[name].copy_(t.uniform(name, 0, e))
            lr = t.cosine(e, total)
            own = t.cosine(e % t.E, t.E, warmup=0) if cyclic else lr
            t.epoch(1.0, rate=lambda name, lr=lr, own=own: own if name.startswith("fc.") else lr)

    return train


def ash_adams(t, g):
    for name, p in t.p.items():
        p.copy_(0.4 * p + 0.1 * t.new(name, g))
    t.new_statistics()


def shrink_to_initial(t, g):
    for name, p in t.p.items():
        p.copy_(0.2 * p + 0.8 * t.initial[name])


def shrink_and_noise(t, g):
    for name in [*t.weights, "fc.bias"]:
        noise = torch.empty(t.p[name].shape).normal_(generator=t.random("reinitialise", name, g)).double()
        t.p[name].copy_(0.3 * t.p[name] + 0.01 * noise)


def lw(t, g):
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)] + ["fc"]
    names, block = list(t.p), blocks[math.floor(g * len(blocks) / t.G)]
    first = next(i for i, name in enumerate(names) if name.startswith(block + "."))
    for name in names[first:]:
        t.p[name].copy_(t.new(name, g))
    for name in names[:first]:
        if t.p[name].norm() > 0:
            t.p[name] *= t.initial[name].norm() / t.p[name].norm()


def fire(t, g):
    for name in t.weights:
        p = t.p[name]
        out, inputs, taps = p.shape[0], p.shape[1], p[0, 0].numel()
        w = p.reshape(out, inputs, taps)
        for k in range(taps):
            x = w[:, :, k] / torch.linalg.matrix_norm(w[:, :, k])
            for _ in range(10):
                x = 1.5 * x - 0.5 * x @ x.T @ x
            w[:, :, k] = x * math.sqrt(out / inputs) / taps
        p.copy_(w.reshape(p.shape))


def dsd(t):
    t.generation()
    held = {}
    for name in t.weights:
        (held[name],) = t.smallest([t.p[name].abs()], 0.3)
        t.p[name][held[name]] = 0.0
    t.fresh()
    t.generation(held=held)
    assert all((t.p[name][held[name]] == 0).all() for name in held)
    t.fresh()
    t.generation(rate=lambda name: 0.1)


def acdc(t):
    total, held = t.G * t.E, None
    for e in range(total):  # one dense epoch, then two sparse and one dense
        if e in (1, 4):
            held = {}
            for name in t.weights:
                (held[name],) = t.smallest([t.p[name].abs()], 0.75)
                t.p[name][held[name]] = 0.0
                t.buf[name][held[name]] = 0.0
        if e == 3:
            held = None
            t.fresh()
        t.epoch(t.cosine(e, total), held=held)


def imp(t):
    t.epoch(t.cosine(0, t.E))
    rewind = copy.deepcopy((t.p, t.stats))
    t.epoch(t.cosine(1, t.E))
    held = {name: torch.zeros_like(t.p[name], dtype=torch.bool) for name in t.weights}
    for _ in range(1, t.G):
        alive = sum(int((~m).sum()) for m in held.values())
        dead = sum(int(m.sum()) for m in held.values())
        sizes = [t.p[name].abs().masked_fill(held[name], -1.0) for name in t.weights]
        share = (dead + math.floor(0.2 * alive)) / (dead + alive)
        held = dict(zip(t.weights, t.smallest(sizes, share), strict=True))
        for name, p in t.p.items():
            p.copy_(rewind[0][name])
            if name in held:
                p[held[name]] = 0.0
        for name, b in t.stats.items():
            b.copy_(rewind[1][name])
        t.fresh()
        t.generation(held=held)


def perturb_magnitude(t, g):
    for name in t.weights:
        (small,) = t.smallest([t.p[name].abs()], 0.5)
        t.p[name].copy_(torch.where(small, 0.0, t.initial[name]))


def born_again(t):
    for g in range(t.G):
        if g:
            teacher = copy.deepcopy(t.model).eval()
            for name, p in t.p.items():
                p.copy_(t.new(name, g))
            t.new_statistics()
            t.fresh()

            def losses(logits, x, y, teacher=teacher, temperature=2.0):
                with torch.no_grad():
                    soft = (teacher(x) / temperature).softmax(1)
                kd = -(soft * (logits / temperature).log_softmax(1)).sum(1).mean()
                return F.cross_entropy(logits, y, label_smoothing=SMOOTHING) + 0.5 * temperature**2 * kd

            t.losses = losses
        t.generation()


def sgdr(t):
    for length in (1, 2, 3):
        for e in range(length):
            t.epoch(t.cosine(e, length, warmup=0))


def hare_tortoise(t):
    t.average = {name: v.clone() for name, v in [*t.p.items(), *t.stats.items()]}

    def after():
        for name, v in [*t.p.items(), *t.stats.items()]:
            t.average[name] = 0.9 * t.average[name] + 0.1 * v

    for e in range(t.G * t.E):
        if e in (1, 3, 5):  # after epochs 0, 2, 4
            for name, v in [*t.p.items(), *t.stats.items()]:
                v.copy_(t.average[name])
        t.epoch(LR, after=after)  # 10 % of 6 epochs: one epoch of warm-up, at its peak


def swa(t):
    ends, total, begin = [], t.G * t.E, 4
    for e in range(total):
        factor = 1 + (0.5 - 1) * e / (begin - 1) if e < begin else 0.5
        t.epoch(LR * factor)
        if e >= begin:
            ends.append({name: p.clone() for name, p in t.p.items()})
    t.average = {name: sum(end[name] for end in ends) / len(ends) for name in t.p}
    model, sums, seen = copy.deepcopy(t.model).train(), {}, 0
    for name, p in model.named_parameters():
        p.data.copy_(t.average[name])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        for x, _ in t.batches():
            model(x)
            seen += len(x)
            for name, b in model.named_buffers():
                sums[name] = sums.get(name, 0) + b * len(x)
    t.average |= {name: sums[name] / seen for name in t.stats}


def sam(rho, adaptive):
    def train(t):
        def gradient(x, y):
            first, before = t.gradient(x, y), {name: p.clone() for name, p in t.p.items()}
            size = {name: before[name].abs() if adaptive else torch.ones_like(before[name]) for name in before}
            norm = torch.sqrt(sum(((size[name] * first[name]) ** 2).sum() for name in first))
            for name, p in t.p.items():
                p += rho * size[name] ** 2 * first[name] / norm
            statistics = {name: b.clone() for name, b in t.stats.items()}
            second = t.gradient(x, y)
            for name, p in t.p.items():
                p.copy_(before[name])
            for name, b in t.stats.items():
                b.copy_(statistics[name])
            return second

        for e in range(t.G * t.E):
            t.epoch(t.cosine(e, t.G * t.E), gradient=gradient)

    return train


def dash(t, g):
    direction = {name: torch.zeros_like(p) for name, p in t.p.items()}
    for gradients in t.plain_gradients(1000):
        for name, gradient in gradients.items():
            direction[name] = 0.7 * direction[name] - 0.3 * gradient
    for name in [*t.weights, "fc.bias"]:
        p, d = t.p[name], direction[name]
        if p.ndim == 4:
            dot, norms = (p * d).sum((2, 3)), p.norm(dim=(2, 3)) * d.norm(dim=(2, 3))
            p *= (dot / norms).nan_to_num().clamp(0.3, 1)[:, :, None, None]  # no gradient: a cosine of 0
        elif p.ndim == 2:
            cosine = (p * d).sum(1) / (p.norm(dim=1) * d.norm(dim=1))
            p *= cosine.nan_to_num().clamp(0.3, 1)[:, None]
        else:
            p *= (p.sign() * d.sign()).clamp(0.3, 1)


def dnr(t, g):
    images, labels = t.images, t.labels
    count = max(1, round(len(images) / 32))
    t.images, t.labels = images[:count], labels[:count]
    total = {name: torch.zeros_like(p) for name, p in t.p.items()}
    for gradients in t.plain_gradients(t.batch):
        for name, gradient in gradients.items():
            total[name] += gradient.abs()
    t.images, t.labels = images, labels
    names = list(t.p)
    marked = dict(zip(names, t.smallest([t.p[n].abs() * total[n] for n in names], 0.2), strict=True))
    for name in t.weights:
        if "downsample" not in name:
            t.p[name].copy_(torch.where(marked[name], t.uniform(name, g), t.p[name]))


def seal(early_of, scale=lambda e: 0.1, losses=None):
    """Generations with one ascent epoch in two; early_of(g) begins the late layers."""

    def train(t):
        usual = t.losses
        t.generation()
        for g in range(1, t.G):
            names = list(t.p)
            early = set(names[: next(i for i, name in enumerate(names) if name.startswith(early_of(g)))])
            for e in range(t.E):
                if e in (0, ASCENT):
                    t.fresh()
                up = e < ASCENT
                t.losses = losses if up and losses else usual
                t.epoch(
                    t.cosine(e, t.E),
                    rate=lambda name, up=up, e=e, early=early: -scale(e) if up and name in early else 1.0,
                    decay=lambda name, up=up, early=early: 0.0 if up and name in early else DECAY,
                )
            t.losses = usual

    return train


ASCENT = 2  # epochs of the ascent in the tests of `seal`


def errors_only(logits, x, y):
    """Cross entropy of the images that are wrongly classified with a softmax of at least 0.3; no smoothing."""
    total = 0.0
    for row, label in zip(logits, y, strict=True):
        if row.argmax() != label and row.softmax(0).max() >= 0.3:
            total = total - row.log_softmax(0)[label]
    return total / len(y) + 0 * logits.sum()
