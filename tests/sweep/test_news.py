"""Workers wake the sweep on their machine."""

import threading
import time

from seal_fast.sweep.scheduling import news


def test_a_word_ends_the_waiting_and_is_heard_once(tmp_path):
    path = tmp_path / "place" / "news"
    with news.listening(path) as pipe:
        assert not pipe.wait(0.01)
        for _ in range(3):  # several at once are one
            news.tell(path)
        assert pipe.wait(60) and not pipe.wait(0.01)
        start = time.monotonic()
        threading.Timer(0.1, news.tell, (path,)).start()
        assert pipe.wait(60)
        assert 0.05 < time.monotonic() - start < 30
    assert not path.exists()


def test_where_nobody_listens_a_word_is_lost_without_a_fault(tmp_path):
    news.tell(tmp_path / "news")
    (tmp_path / "file").touch()
    with news.listening(tmp_path / "file") as pipe:  # what a killed sweep has left is replaced
        assert not pipe.wait(0)
