import errno

import pytest
import torch

from seal_fast.utils.errors import errno_of, last_message, reason, system_error


def refused(size):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(size, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "Cannot allocate memory: free memory, or lower --batch-size"),
        (OSError(errno.ENOMEM, "x"), "Cannot allocate memory: free memory"),
        (OSError(errno.EMFILE, "x", "/a/b"), "/a/b: Too many open files: raise the limit on open files (ulimit -n)"),
        (PermissionError(errno.EACCES, "x", "/a"), "/a: Permission denied: check the permissions"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "Cannot allocate memory: free memory"),
    ],
    ids=str,
)
def test_what_the_machine_refuses_is_one_sentence(error, sentence):
    assert str(system_error(error)).startswith(sentence)


def test_torchs_allocator_counts_as_memory():
    assert str(system_error(refused(1 << 60))).startswith("Cannot allocate memory")


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shapes differ"), OSError("x"), KeyError(12)], ids=str)
def test_a_defect_keeps_its_traceback(error):
    assert system_error(error) is None


def test_the_number_of_safetensors_errors_is_in_their_text():
    assert errno_of(RuntimeError("No such device (os error 19)")) == errno.ENODEV
    assert errno_of(ValueError("invalid header")) == 0 and reason(ValueError("invalid header")) == "invalid header"


def test_the_last_message_is_the_error_or_the_last_line(tmp_path):
    """An earlier attempt's words do not count."""
    log = tmp_path / "output.log"
    assert last_message(log) == ""
    log.write_text("g0 e000\nerror: the first\nerror: the second\nwarning: x\n\n")
    assert last_message(log) == "the second" and last_message(log, 8) == "the second"
    assert last_message(log, 43) == "warning: x"
    log.write_text("g0 e000\nSegmentation fault\n")
    assert last_message(log) == "Segmentation fault"
