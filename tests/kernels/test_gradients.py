"""The quick look at an optimiser's gradients says what the close one says, or leaves it to that."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from seal_fast.kernels import native
from seal_fast.kernels.annealed_sgd import FlatParameters
from seal_fast.kernels.annealed_sgd.layout import tagged_addresses

pytestmark = pytest.mark.skipif(not native.available(), reason="installed without native kernels")


def flat(dtype=torch.float32, copies=False):
    """A channels-last weight, one of single pixels, a matrix, a vector and a scalar, each with a gradient."""
    shapes = (4, 3, 2, 2), (5, 6, 1, 1), (7, 3), (9,), ()
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    params[0].data = params[0].data.to(memory_format=torch.channels_last)
    made = FlatParameters(params, [f"p{i}" for i in range(5)], [0] * 5)
    if copies:
        made.copied([nn.Parameter(p.detach().bfloat16()) for p in params])
    for leaf in made._copies or params:
        leaf.grad = torch.randn_like(leaf)
    return made


def read(made):
    return native.require().read_gradients(made._quick, made.params, made._copies)


def assert_read(made, quickly=True):
    assert (read(made) is not None) == quickly
    grads, addresses = made.addressed_gradients()
    expected = made.gradients()
    if quickly:
        assert all(a is b for a, b in zip(grads, expected, strict=True))
        assert addresses == tagged_addresses(expected)
    return grads, addresses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_usual_gradients(dtype):
    grads, addresses = assert_read(flat(dtype))
    assert [g.data_ptr() for g in grads] == addresses


def test_some_have_none():
    made = flat()
    made.params[0].grad = made.params[3].grad = None
    _, addresses = assert_read(made)
    assert addresses[0] == addresses[3] == 0 != addresses[1]


def test_those_of_bfloat16_copies_are_tagged():
    made = flat(copies=True)
    made.params[2].grad, made._copies[2].grad = torch.randn(7, 3), None
    _, addresses = assert_read(made)
    assert [a % 2 for a in addresses] == [1, 1, 0, 1, 1]


def test_strides_of_single_pixels_say_nothing():
    made = flat()
    made.params[1].grad = torch.randn(30).as_strided((5, 6, 1, 1), (6, 1, 6, 6))
    assert made.params[1].grad.stride() != made.params[1].stride()
    assert_read(made)


def test_another_memory_order_is_copied_by_the_close_look():
    made = flat()
    made.params[0].grad = torch.arange(48.0).view(4, 3, 2, 2)
    grads, _ = assert_read(made, quickly=False)
    assert grads[0].stride() == made.params[0].stride() and torch.equal(grads[0], made.params[0].grad)


def moved(made):
    made.params[3].data = made.params[3].detach().clone()


def twice(made):
    made.copied([nn.Parameter(p.detach().bfloat16()) for p in made.params])
    made._copies[4].grad = torch.zeros((), dtype=torch.bfloat16)


def of_half_precision(made):
    made.params[2].grad, made.params[2].grad_dtype = None, torch.float16
    made.params[2].grad = torch.zeros(7, 3, dtype=torch.float16)


def sparse(made):
    made.params[2].grad = torch.zeros(7, 3).to_sparse()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (moved, "parameter p3 was moved"),
        (twice, "both p4 and its copy have a gradient"),
        (of_half_precision, "the gradient of p2 is torch.float16"),
        (sparse, "(?i)sparse"),
    ],
)
def test_the_close_look_says_what_is_wrong(spoil, message):
    made = flat()
    spoil(made)
    assert read(made) is None
    with pytest.raises((RuntimeError, ValueError), match=message):
        made.addressed_gradients()


def test_a_buffer_moved_by_its_owner_is_the_new_place():
    made = flat()
    made.move(made.buffer.clone())
    assert_read(made)


def test_parameters_that_refer_to_what_holds_them_are_let_go():
    made = flat()
    made.params[0].owner = made
    ended = weakref.ref(made)
    del made
    gc.collect()
    assert ended() is None


def test_a_program_ends_in_silence_with_its_optimiser_alive():
    code = (
        "import sys, torch; from seal_fast.optim import AnnealedSGD\n"
        "p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)\n"
        "optimizer = AnnealedSGD([p], torch.tensor(0.1)); optimizer.step(); sys.modules['kept'] = [optimizer, p]\n"
        "torch.kept = optimizer; sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
