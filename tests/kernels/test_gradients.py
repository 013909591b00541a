"""The native update that looks for the gradients itself does what `annealed_sgd_` does, or nothing at all."""

import copy
import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from seal_fast.kernels import native
from seal_fast.kernels.annealed_sgd import FlatParameters, annealed_sgd_, native_update

pytestmark = pytest.mark.skipif(not native.available(), reason="installed without native kernels")

HYPERPARAMETERS = torch.tensor([[0.1, 0.9, 0.01, 1.0, 1.0]], dtype=torch.float64)


def flat(dtype=torch.float32, copies=False):
    """A channels-last weight, one of single pixels, a matrix, a vector and a scalar, each with a gradient."""
    shapes = (4, 3, 2, 2), (5, 6, 1, 1), (7, 3), (9,), ()
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    params[0].data = params[0].data.to(memory_format=torch.channels_last)
    made = FlatParameters(params, [f"p{i}" for i in range(5)], [0] * 5)
    if copies:
        made.copies_read = [nn.Parameter(p.detach().bfloat16()) for p in params]
    for leaf in made.copies_read or params:
        leaf.grad = torch.randn_like(leaf)
    return made


def assert_updates(made, quickly=True, grad_scale=None, found_inf=None):
    """One update by sight and one that is told the gradients, from the same weights."""
    momentum = torch.randn_like(made.buffer)
    weights, same = made.buffer.clone(), momentum.clone()
    optional = dict(grad_scale=grad_scale, found_inf=found_inf)
    annealed_sgd_(weights, same, made.gradients(), made.segments, HYPERPARAMETERS, backend="native", **optional)
    before = made.buffer.clone()
    assert native_update(made, momentum, HYPERPARAMETERS)(grad_scale, found_inf) == quickly
    assert torch.equal(made.buffer, weights if quickly else before)
    if quickly:
        assert torch.equal(momentum, same) and torch.equal(weights, before) == (found_inf is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_usual_gradients(dtype):
    assert_updates(flat(dtype))


def test_scaled_gradients_and_those_with_an_infinity():
    assert_updates(flat(), grad_scale=torch.tensor(8.0))
    assert_updates(flat(), grad_scale=torch.tensor(8.0), found_inf=torch.ones(()))


@pytest.mark.parametrize("wrong", [torch.tensor(8.0, dtype=torch.float64), torch.ones(2), torch.tensor(8)])
@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
def test_what_is_no_float32_number_is_left_to_the_close_look(name, wrong):
    made, momentum = flat(), torch.ones(flat().buffer.shape)
    arguments = dict.fromkeys(("grad_scale", "found_inf"), None) | {name: wrong}
    before = made.buffer.clone()
    assert not native_update(made, momentum, HYPERPARAMETERS)(*arguments.values()) and torch.equal(made.buffer, before)
    with pytest.raises(ValueError, match=f"{name} must be one torch.float32 number"):
        annealed_sgd_(
            made.buffer, momentum, made.gradients(), made.segments, HYPERPARAMETERS, backend="native", **arguments
        )


def test_a_scale_in_a_row_of_one():
    assert_updates(flat(), grad_scale=torch.full((1,), 4.0))


def test_some_have_none():
    made = flat()
    made.params[0].grad = made.params[3].grad = None
    before = copy.deepcopy([p.detach() for p in made.params])
    assert_updates(made)
    unchanged = [torch.equal(p, b) for p, b in zip(made.params, before, strict=True)]
    assert unchanged == [True, False, False, True, False]


def test_those_of_bfloat16_copies():
    made = flat(copies=True)
    made.params[2].grad, made.copies_read[2].grad = torch.randn(7, 3), None
    assert_updates(made)


def test_strides_of_single_pixels_say_nothing():
    made = flat()
    made.params[1].grad = torch.randn(30).as_strided((5, 6, 1, 1), (6, 1, 6, 6))
    assert made.params[1].grad.stride() != made.params[1].stride()
    assert_updates(made)


def test_another_memory_order_is_left_to_the_close_look():
    made = flat()
    made.params[0].grad = torch.arange(48.0).view(4, 3, 2, 2)
    assert_updates(made, quickly=False)
    assert made.gradients()[0].stride() == made.params[0].stride()


def moved(made):
    made.params[3].data = made.params[3].detach().clone()


def twice(made):
    made.copies_read = [nn.Parameter(p.detach().bfloat16()) for p in made.params]
    made.copies_read[4].grad = torch.zeros((), dtype=torch.bfloat16)


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
def test_nothing_is_done_and_the_close_look_says_what_is_wrong(spoil, message):
    made = flat()
    update = native_update(made, torch.ones_like(made.buffer), HYPERPARAMETERS)
    assert update(None, None)
    spoil(made)
    if spoil is twice:
        update = native_update(made, torch.ones_like(made.buffer), HYPERPARAMETERS)
    before = made.buffer.clone()
    assert not update(None, None) and torch.equal(made.buffer, before)
    with pytest.raises((RuntimeError, ValueError), match=message):
        made.gradients()


@pytest.mark.parametrize("copies", [False, True])
def test_autograd_learns_of_what_is_written_and_of_nothing_else(copies):
    made = flat(copies=copies)
    leaves = [*made.params, *made.copies_read]
    update = native_update(made, torch.zeros_like(made.buffer), HYPERPARAMETERS)
    versions = [leaf._version for leaf in leaves]
    assert update(None, None) and [leaf._version for leaf in leaves] == [v + 1 for v in versions]
    moved(made)
    versions = [leaf._version for leaf in leaves]
    assert not update(None, None) and [leaf._version for leaf in leaves] == versions


def test_a_buffer_moved_by_its_owner_ends_what_was_made_for_the_old_one():
    made = flat()
    update = native_update(made, torch.ones_like(made.buffer), HYPERPARAMETERS)
    made.move(made.buffer.clone())
    assert not update(None, None)
    assert_updates(made)


def test_parameters_that_refer_to_what_holds_them_are_let_go():
    made = flat()
    made.params[0].owner = native_update(made, torch.ones_like(made.buffer), HYPERPARAMETERS)
    made.params[0].flat = made
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
