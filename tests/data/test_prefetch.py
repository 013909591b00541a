"""The thread that prefetches: order, exceptions, and its end."""

import threading
import time

import pytest

from seal_fast.data.prefetch import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("seal_fast-input")]


def test_order_is_kept_and_the_thread_ends():
    assert list(prefetch(number for number in range(100))) == list(range(100))
    assert threads() == []


def test_it_works_ahead_but_not_without_limit():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    running = prefetch(items(), depth=3)
    assert next(running) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 4  # one consumed, three ahead
    running.close()
    assert threads() == []


def test_an_exception_comes_in_its_place():
    def items():
        yield 1
        raise ValueError("here")

    running = prefetch(items())
    assert next(running) == 1
    with pytest.raises(ValueError, match="here"):
        next(running)
    assert threads() == []


def test_closing_ends_the_items_in_their_own_thread():
    """A CUDA stream that they have set is that thread's, and is given back there."""
    ended = []

    def items():
        try:
            while True:
                yield threading.current_thread()
        finally:
            ended.append(threading.current_thread())

    running = prefetch(items())
    worker = next(running)
    running.close()
    assert ended == [worker] and worker is not threading.current_thread()
