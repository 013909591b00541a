import numpy as np
import pytest

from seal_fast.analysis.fewshot.episodes import draw
from seal_fast.utils.errors import UsageError

LABELS = np.repeat(np.arange(6), [20, 30, 25, 20, 40, 22])
NAMES = list("abcdef")


def drawn(**changes):
    return draw(LABELS, NAMES, **{"ways": 4, "shots": 5, "queries": 7, "episodes": 30, "seed": 3} | changes)


def test_an_episode_holds_shots_and_queries_of_distinct_classes():
    shown = drawn()
    assert shown.support.shape == (30, 20) and shown.query.shape == (30, 28)
    for support, query in zip(shown.support, shown.query, strict=True):
        assert len(np.unique(np.concatenate([support, query]))) == 48  # no image twice
        classes = LABELS[support].reshape(4, 5)
        assert (classes == classes[:, :1]).all() and len(set(classes[:, 0])) == 4
        assert (LABELS[query].reshape(4, 7) == classes[:, :1]).all()
    assert shown.support_labels.tolist() == np.repeat(range(4), 5).tolist()
    assert {tuple(LABELS[s[::5]]) for s in shown.support} != {tuple(LABELS[shown.support[0][::5]])}


def test_episodes_are_a_function_of_the_seed_and_their_number():
    few, many = drawn(episodes=5), drawn()
    np.testing.assert_array_equal(few.support, many.support[:5])
    np.testing.assert_array_equal(few.query, many.query[:5])
    np.testing.assert_array_equal(few.orders(2, 5, 3), many.orders(0, 9, 3)[2:5])
    np.testing.assert_array_equal(few.heads(2, 5, 8), many.heads(0, 9, 8)[2:5])
    assert (drawn(seed=4).support != many.support).any()


def test_more_shots_add_to_the_same_episode():
    five, nine = drawn(), drawn(shots=9)
    np.testing.assert_array_equal(five.query, nine.query)
    np.testing.assert_array_equal(five.support.reshape(30, 4, 5), nine.support.reshape(30, 4, 9)[:, :, :5])


def test_orders_are_permutations_and_heads_are_what_a_linear_layer_starts_from():
    shown = drawn()
    orders = shown.orders(0, 3, 10)
    assert orders.shape == (3, 10, 20) and (np.sort(orders, 2) == np.arange(20)).all()
    assert len({tuple(order) for order in orders.reshape(-1, 20)}) == 30
    heads = shown.heads(0, 30, 64)
    assert heads.shape == (30, 4, 65) and np.abs(heads).max() <= 1 / 8
    np.testing.assert_allclose(heads.std(), 1 / 8 / np.sqrt(3), rtol=0.02)  # uniform


def test_every_class_is_drawn_about_equally_often():
    shown = drawn(episodes=1500)
    counts = np.bincount(LABELS[shown.support[:, ::5]].ravel(), minlength=6)
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(1500 * 2 / 3 / 3))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ways": 7}, "--ways 7: the images have 6 classes"),
        ({"ways": 1}, "--ways 1: must be at least 2"),
        ({"shots": 0}, "--shots 0: must be at least 1"),
        ({"shots": 14}, "class a has 20 images, and 14 shots with 7 queries need 21"),
        ({"queries": 16}, "class a has 20 images"),
        ({"episodes": 0}, "--episodes 0"),
    ],
)
def test_what_the_pool_cannot_give_ends_in_a_sentence(changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        drawn(**changes)


def test_the_largest_episode_that_fits_is_drawn():
    assert drawn(shots=13).support.shape == (30, 52)
