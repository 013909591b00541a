"""Processes ask each other about once a second, and all after the same step."""

from seal_fast.distributed.world import World
from seal_fast.training import pulse
from seal_fast.training.pulse import Pulse


class Others(World):
    """A world of two in which the other process says what the test wants."""

    said = (0, 0, 0.0)
    asked = 0

    def max(self, *numbers):
        type(self).asked += 1
        return [float(max(a, b)) for a, b in zip(numbers, self.said, strict=True)]


def test_one_process_answers_itself():
    assert Pulse(World())(15, False) == (15, False)
    assert Pulse(World())(None, True) == (None, True)


def test_steps_between_questions_follow_the_slowest(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])
    Others.said, Others.asked = (0, 0, 0.02), 0
    ask = Pulse(Others(0, 2), 1.0)
    for _ in range(200):
        now[0] += 0.01  # we take 10 ms a step, the other 20
        assert ask(None, False) == (None, False)
    assert ask.steps == 50 and Others.asked <= 6
    Others.said = (
        15,
        0,
        0.02,
    )  # the other got SIGTERM: we hear of it within a second's steps, or at once when asked to
    answers = [ask(None, False)[0] for _ in range(50)]
    assert answers.count(15) >= 1
    assert ask(None, False, now=True) == (15, False)


def test_the_first_process_decides_when_a_checkpoint_is_due():
    Others.said = (0, 0, 0.0)
    assert Pulse(Others(1, 2), 0.0)(None, True) == (None, False)
    assert Pulse(Others(0, 2), 0.0)(None, True) == (None, True)
