"""What happens when processes are killed, hang, are asked to stop, or were started wrongly: one clear sentence."""

import signal
import time

import pytest
from processes import Commands
from runs import assert_identical, await_checkpoint, outcome

from seal_fast.runs.folder import RunFolder
from seal_fast.training import checkpoint

FLAGS = (
    "--stem small --generations 2 --ascent-epochs 1 --warmup-epochs 1 --batch-size 12 --checkpoint-seconds 0".split()
)


def commands(tmp_path, image_folder, size, *more, each=None, epochs=2, **options):
    """Commands of `size` processes with the same flags, and those of `each` by rank."""
    same = [*FLAGS, "--data", str(image_folder), "--out", str(tmp_path / "run"), "--epochs", str(epochs), *more]
    return Commands(tmp_path, [same + (each or {}).get(rank, []) for rank in range(size)], **options)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_the_others_stop_within_the_timeout(number, image_folder, tmp_path):
    running = commands(tmp_path, image_folder, 3, "--dist-timeout", "4", epochs=1000)
    began = await_checkpoint(RunFolder(tmp_path / "run").checkpoint)
    running.kill(number, 1)
    for rank in (0, 2):
        running.processes[rank].join(60)
    assert time.monotonic() - began < 30
    running.processes[1].kill()
    codes, lines = running.wait()
    assert codes == [1, -signal.SIGKILL, 1]
    assert len(lines) == 1 and lines[0].startswith(
        "[rank 0] error: another process ended, or did not answer within --dist-timeout 4 s; the last checkpoint of a "
        "training run is intact"
    )
    checkpoint.load(RunFolder(tmp_path / "run").checkpoint)


@pytest.mark.parametrize("told", [(0, 1), (1,)], ids=["all", "one"])
def test_sigterm_stops_all_with_one_checkpoint(told, image_folder, tmp_path):
    folder = RunFolder(tmp_path / "run")
    running = commands(tmp_path, image_folder, 2, epochs=30)
    await_checkpoint(folder.checkpoint)
    running.kill(signal.SIGTERM, *told)
    codes, lines = running.wait()
    assert codes == [128 + signal.SIGTERM] * 2
    position = checkpoint.load(folder.checkpoint).position
    assert len(lines) == 1 and lines[0].startswith(f"stopped by SIGTERM before {position}, the checkpoint is written")
    assert position.generation == 0  # it did not run to its end
    assert folder.weights("last").exists()


@pytest.mark.long
def test_a_stopped_run_goes_on_to_the_same_end(image_folder, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    assert commands(whole, image_folder, 2, epochs=3).wait() == ([0, 0], [])
    running = commands(tmp_path, image_folder, 2, epochs=3)
    await_checkpoint(RunFolder(tmp_path / "run").checkpoint)
    running.kill(signal.SIGTERM, 0, 1)
    running.wait()
    assert commands(tmp_path, image_folder, 2, epochs=3).wait() == ([0, 0], [])
    assert_identical(outcome(tmp_path / "run"), outcome(whole / "run"))


@pytest.mark.parametrize(
    ("size", "options", "code", "sentence"),
    [
        (3, {"each": {rank: ["--batch-size", "8"] for rank in range(3)}}, 2, "--batch-size 8 cannot be divided"),
        (
            2,
            {"each": {1: ["--lr", "0.2"]}},
            2,
            "process 1 differs from process 0 in its settings (lr 0.2 instead of 0.1)",
        ),
        (2, {"each": {1: ["--data", "digits"]}}, 2, "process 1 differs from process 0 in its images"),
        (2, {"each": {1: ["--data", "/nowhere"]}}, 2, "process 1: /nowhere: no such file or folder"),
        (
            2,
            {"environment": {"MASTER_PORT": None}},
            2,
            "WORLD_SIZE is 2 in the environment, and MASTER_PORT is not set",
        ),
        (2, {"environment": {"LOCAL_RANK": "x"}}, 2, "WORLD_SIZE is 2 in the environment, and LOCAL_RANK is x"),
    ],
    ids=["batch", "settings", "images", "no images", "no port", "no rank"],
)
def test_bad_use_is_one_sentence(size, options, code, sentence, image_folder, tmp_path):
    codes, lines = commands(tmp_path, image_folder, size, **options).wait()
    assert codes == [code] * size
    assert len(lines) == 1 and lines[0].startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [
        (2, "error: process 0 of 3 did not meet all others at 127.0.0.1"),
        (0, "[rank 1] error: process 1 of 2 did not reach 127.0.0.1"),
    ],
)
def test_a_process_that_never_comes_is_missed(absent, sentence, image_folder, tmp_path):
    size = 3 if absent else 2
    codes, lines = commands(tmp_path, image_folder, size, "--dist-timeout", "3", absent=[absent]).wait()
    assert codes == [1] * (size - 1)
    reported = [line for line in lines if "error: " in line]
    assert len(reported) == 1 and reported[0].startswith(sentence) and "--dist-timeout 3 s" in reported[0]
    assert "Traceback" not in "".join(lines), lines


def test_a_restarting_torchrun_needs_a_folder(image_folder, tmp_path):
    args = [[*FLAGS, "--data", str(image_folder)]] * 2
    codes, lines = Commands(tmp_path, args, environment={"TORCHELASTIC_MAX_RESTARTS": "3"}).wait()
    assert codes == [2, 2]
    assert lines == ["error: torchrun --max-restarts needs --out: without it a restart could not find its run"]
