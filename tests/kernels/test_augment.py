"""The augmentation, every backend of it, against a literal float64 loop over images."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal import literal_philox
from scipy import stats
from torch._dynamo.testing import CompileCounter

from seal_fast.kernels import augment
from seal_fast.kernels.augment import reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3, "dtype": torch.float32}  # values are the pixels, exactly
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETING else "cpu"

# Half a unit in the last place, which rounding costs. Triton's interpreter truncates bfloat16: a whole one.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
if INTERPRETING:
    ROUNDING[torch.bfloat16] *= 2

no_triton = pytest.mark.skipif(
    not INTERPRETING and DEVICE == "cpu", reason="no GPU; test_interpreted.py runs this on the CPU"
)
TRITON = pytest.param("triton", marks=[no_triton] if INTERPRETING else [no_triton, pytest.mark.gpu])
BACKENDS = ["reference", TRITON]


def random_images(count, height, width, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)


def run(images, index, backend, **arguments):
    device = DEVICE if backend == "triton" else "cpu"
    return augment(images.to(device), index.to(device), backend=backend, **arguments).cpu()


def literal(images, index, *, size, mean, std, dtype, pad, flip, train, seed, generation, epoch, position):
    """NumPy, one image at a time, in float64; also the size of the terms, to which rounding errors are relative."""
    ones = 0xFFFFFFFF
    result, terms = [], []
    for b, row in enumerate(index.tolist()):
        image = images[row].numpy()
        height, width, channels = image.shape
        if train:
            place = position + b
            counter = (place & ones, epoch, generation, place >> 32)
            w = literal_philox(counter, (seed & ones, seed >> 32))
            image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            top, left = w[0] * (height + 2 * pad - size + 1) >> 32, w[1] * (width + 2 * pad - size + 1) >> 32
        else:
            top, left = (height - size) // 2, (width - size) // 2
        image = image[top : top + size, left : left + size].astype(np.float64)
        if train and flip and w[2] >= 2**31:
            image = image[:, ::-1]
        image = np.repeat(image, 3, axis=2) if channels == 1 else image
        result.append(((image / 255 - mean) / std).transpose(2, 0, 1))
        terms.append(((image / 255 + np.abs(mean)) / std).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(result)), torch.from_numpy(np.stack(terms))


def assert_equals_literal(images, index, backend, **arguments):
    dtype = arguments["dtype"]
    expected, terms = literal(images, index, **arguments)
    actual = run(images, index, backend, **arguments)
    assert actual.dtype == dtype and actual.shape == expected.shape
    assert actual.is_contiguous(memory_format=torch.channels_last)
    computing = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    bound = 3 * computing * terms + ROUNDING[dtype] * expected.abs()
    assert ((actual.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size", "pad", "train"),
    [
        (1, 1, 1, 0, True),
        (1, 1, 1, 2, True),
        (7, 7, 7, 2, True),
        (33, 33, 33, 4, True),
        (64, 64, 64, 4, True),
        (65, 65, 65, 0, True),
        (30, 41, 17, 1, True),
        (5, 6, 13, 20, True),
        (64, 64, 64, 0, False),
        (66, 71, 33, 4, False),
    ][:: 3 if INTERPRETING else 1],
)
def test_equals_the_literal_loop(backend, dtype, channels, height, width, size, pad, train):
    assert_equals_literal(
        random_images(7, height, width, channels),
        torch.tensor([3, 0, 6, 3, 5][: 1 + 32 // size if INTERPRETING else 5]),
        backend,
        size=size,
        mean=MEAN,
        std=STD,
        dtype=dtype,
        pad=pad,
        flip=True,
        train=train,
        seed=2**62 + 12345,
        generation=9,
        epoch=2**32 - 1,
        position=2**40 - 3,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15 if INTERPRETING else 200, deadline=None)
@given(data=st.data())
def test_choices_are_exactly_the_literal_ones(backend, data):
    """With mean 0 and std 1/255 there is no rounding, so a single pixel out of place shows."""
    height, width, pad = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)), data.draw(st.integers(0, 9))
    train = data.draw(st.booleans())
    size = data.draw(st.integers(1, min(height, width) + 2 * pad * train))
    channels, batch = data.draw(st.sampled_from((1, 3))), data.draw(st.integers(1, 5))
    arguments = {
        "size": size,
        "pad": pad,
        "train": train,
        "flip": data.draw(st.booleans()),
        "seed": data.draw(st.integers(0, 2**63 - 1)),
        "generation": data.draw(st.integers(0, 2**32 - 1)),
        "epoch": data.draw(st.integers(0, 2**32 - 1)),
        "position": data.draw(st.integers(0, 2**48 - batch)),
        **IDENTITY,
    }
    images, index = random_images(3, height, width, channels), torch.arange(batch) % 3
    expected, _ = literal(images, index, **arguments)
    assert torch.equal(run(images, index, backend, **arguments).double(), expected.round())


@pytest.mark.parametrize("backend", BACKENDS)
@given(cut=st.integers(0, 8), position=st.integers(0, 2**33))
@settings(max_examples=5 if INTERPRETING else 25, deadline=None)
def test_a_batch_equals_its_parts(backend, cut, position):
    images, index = random_images(20, 12, 12, 3), torch.arange(8) * 2
    arguments = {"size": 12, "mean": MEAN, "std": STD, "dtype": torch.bfloat16, "pad": 4, "flip": True, "seed": 5}
    whole = run(images, index, backend, position=position, **arguments)
    first = run(images, index[:cut], backend, position=position, **arguments)
    second = run(images, index[cut:], backend, position=position + cut, **arguments)
    assert torch.equal(whole, torch.cat([first, second]))


def test_offsets_and_flips_are_uniform_and_independent():
    count, pad, size = 40_000, 4, 8
    settings = reference.Settings((), (), pad, True, True, 1, 2, 3, 0)
    top, left, flipped = reference.choices(torch.zeros(count, dtype=torch.int64), 8, 8, size, settings)
    n = 2 * pad + 1
    assert top.min() == -pad and top.max() == pad and left.min() == -pad and left.max() == pad
    table = torch.bincount(((top + pad) * n + left + pad) * 2 + flipped, minlength=2 * n * n)
    assert table.numel() == 2 * n * n
    assert stats.chisquare(table.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_differ_in_every_coordinate(backend):
    images, index = random_images(1, 16, 16, 3), torch.zeros(4, dtype=torch.int64)
    common = {"size": 16, "pad": 8, "flip": True, **IDENTITY}
    streams = [{}, {"seed": 1}, {"seed": 2**40}, {"generation": 1}, {"epoch": 1}, {"position": 100}]
    results = [run(images, index, backend, **common, **stream) for stream in streams]
    for i, result in enumerate(results):
        assert torch.equal(result, run(images, index, backend, **common, **streams[i]))
        assert all(not torch.equal(result, other) for other in results[:i])


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_is_written_in_place_and_returned(backend):
    images, index = random_images(9, 16, 16, 3), torch.arange(9)
    arguments = {"size": 16, "mean": MEAN, "std": STD, "dtype": torch.float16, "pad": 2, "flip": True}
    device = DEVICE if backend == "triton" else "cpu"
    buffer = torch.full((11, 3, 16, 16), 7.0, dtype=torch.float16, device=device).to(memory_format=torch.channels_last)
    out = buffer[1:10]
    assert augment(images.to(device), index.to(device), out=out, backend=backend, **arguments) is out
    assert torch.equal(out.cpu(), run(images, index, backend, **arguments))
    assert (buffer[0] == 7).all() and (buffer[10] == 7).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_is_empty(backend):
    result = run(random_images(2, 4, 4, 3), torch.empty(0, dtype=torch.int64), backend, size=4, **IDENTITY)
    assert result.shape == (0, 3, 4, 4)


@pytest.mark.parametrize("row", [-1, 5, 2**40])
def test_a_row_that_does_not_exist_raises_on_the_cpu(row):
    out = torch.full((3, 3, 4, 4), 7.0).to(memory_format=torch.channels_last)
    with pytest.raises(IndexError, match=r"its values must lie in \[0, 5\)"):
        run(random_images(5, 4, 4, 3), torch.tensor([0, row, 1]), "reference", size=4, out=out, **IDENTITY)
    assert (out == 7).all()


@no_triton
@pytest.mark.parametrize("row", [-1, 5, 2**40])
def test_a_row_that_does_not_exist_becomes_nan_in_triton(row):
    result = run(random_images(5, 4, 4, 3), torch.tensor([0, row, 1]), "triton", size=4, pad=1, **IDENTITY)
    assert result[1].isnan().all() and result[0].isfinite().all() and result[2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train", [False, True])
def test_opcheck(backend, train):
    device = DEVICE if backend == "triton" else "cpu"
    images, index = random_images(4, 8, 8, 3).to(device), torch.arange(3, device=device)
    out = torch.empty(3, 3, 8, 8, device=device, memory_format=torch.channels_last)
    arguments = (images, index, out, [0.1] * 3, [0.2] * 3, 2, True, train, 1, 2, 3, 4, backend)
    torch.library.opcheck(torch.ops.seal_fast.augment, arguments)


def test_compiles_without_graph_breaks_and_for_every_position():
    images, index = random_images(9, 8, 8, 3), torch.arange(9)
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True, dynamic=True)
    def batch(position):
        return augment(images, index, size=8, pad=2, flip=True, position=position, **IDENTITY) * 2

    for position in (5, 9, 2**35):
        expected = augment(images, index, size=8, pad=2, flip=True, position=position, **IDENTITY) * 2
        assert torch.equal(batch(position), expected)
    assert counter.frame_count == 1


GOOD = SimpleNamespace(
    images=random_images(4, 8, 8, 3), index=torch.arange(4), size=8, mean=MEAN, std=STD, dtype=torch.float32
)
OUT = torch.empty(4, 3, 8, 8, memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"images": GOOD.images.float()},
            r"images must be uint8 \[N, H, W, 1 or 3\].*, not torch.float32 \[4, 8, 8, 3\]",
        ),
        ({"images": GOOD.images[..., :2]}, "images must be uint8"),
        ({"images": GOOD.images[:0]}, "images must be uint8 .* without empty dimensions"),
        ({"images": GOOD.images[:, :, ::2]}, "images must be contiguous"),
        ({"index": GOOD.index.int()}, "index must be a contiguous vector of int64, not torch.int32"),
        ({"index": GOOD.index[::2]}, "index must be a contiguous vector"),
        ({"index": GOOD.index[None]}, "index must be a contiguous vector"),
        ({"index": GOOD.index.to("meta")}, "index is on meta and images on cpu"),
        ({"dtype": torch.int32}, "dtype must be bfloat16, float16, float32 or float64, not torch.int32"),
        ({"mean": (0.5,)}, "mean and std must be three finite numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "std positive"),
        ({"mean": (0.5, math.nan, 0.5)}, "finite"),
        ({"size": 0}, "size 0 with pad 0 does not fit images of 8 x 8"),
        ({"size": 13, "pad": 2}, "size 13 with pad 2 does not fit images of 8 x 8: choose"),
        (
            {"size": 9, "pad": 2, "train": False},
            r"size 9 with pad 0 does not fit .* \(evaluation crops and never pads\)",
        ),
        ({"pad": -1}, "choose pad >= 0"),
        ({"position": -1}, "position is -1"),
        ({"position": 2**48 - 3}, "position is 281474976710653"),
        ({"seed": -1}, "seed is -1: a random stream needs"),
        ({"epoch": 2**32}, "epoch is 4294967296"),
        ({"out": OUT[:3]}, r"out must be torch.float32 \[4, 3, 8, 8\] on cpu, not torch.float32 \[3, 3, 8, 8\]"),
        ({"out": OUT.half()}, "not torch.float16"),
        ({"out": OUT.contiguous()}, "out must be channels-last: allocate it with"),
        ({"backend": "cuda"}, "augment: backend must be one of auto, reference, native, triton, not 'cuda'"),
    ],
)
def test_bad_arguments_are_named_in_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        augment(**{**vars(GOOD), **change})
