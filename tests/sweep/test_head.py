"""A lost head of a cluster is noticed, and a short silence is borne."""

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

    def lost():
        calls.append(port)
        told.set()

    with head.watched(f"127.0.0.1:{port}", lost, period=0.01, patience=0.2):
        assert not told.wait(0.5)  # it answers
        server.close()
        assert told.wait(30)
        time.sleep(0.1)
    assert calls == [port]


def test_a_silence_shorter_than_the_patience_is_borne():
    server, port = listen()
    calls = []
    with head.watched(f"127.0.0.1:{port}", lambda: calls.append(port), period=0.01, patience=60):
        server.close()
        assert head.answers(f"127.0.0.1:{port}", 1) is not None
        time.sleep(0.2)
    assert not calls
