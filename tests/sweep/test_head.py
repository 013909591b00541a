"""A lost head, or process of Ray, is noticed, and a short silence is borne."""

import socket
import threading
import time

from seal_fast.sweep.scheduling import head


def listen(port=0):
    server = socket.create_server(("127.0.0.1", port))
    return server, server.getsockname()[1]


def test_a_head_that_is_gone_is_told_once_and_one_that_answers_never():
    server, port = listen()
    calls, told = [], threading.Event()

    def lost(what):
        calls.append(what)
        told.set()

    with head.watched(f"127.0.0.1:{port}", lambda: True, lost, period=0.01, patience=0.2):
        assert not told.wait(0.5)  # it answers
        server.close()
        assert told.wait(30)
        time.sleep(0.1)
    assert calls == ["its head (no answer for 0 s)"]


def test_a_silence_shorter_than_the_patience_is_borne():
    server, port = listen()
    calls = []
    with head.watched(f"127.0.0.1:{port}", lambda: True, calls.append, period=0.01, patience=60):
        server.close()
        assert head.answers(f"127.0.0.1:{port}", 1) is not None
        time.sleep(0.2)
    assert not calls


def test_a_process_of_ray_that_is_gone_is_told_once_and_not_asked_after_without_a_head():
    server, port = listen()
    calls, told, lives = [], threading.Event(), threading.Event()
    lives.set()

    def lost(what):
        calls.append(what)
        told.set()

    with server, head.watched(f"127.0.0.1:{port}", lives.is_set, lost, period=0.01, patience=60):
        assert not told.wait(0.5)
        lives.clear()
        assert told.wait(30)
        time.sleep(0.1)
    assert calls == ["its process on this machine (raylet)"]

    def never():
        raise AssertionError("asked of a head that does not answer")

    with head.watched(f"127.0.0.1:{port}", never, calls.append, period=0.01, patience=0.1):
        time.sleep(0.5)
    assert calls[1:] == ["its head (no answer for 0 s)"]
