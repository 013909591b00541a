import errno

import pytest
import torch

from seal_fast.utils.errors import errno_of, reason, system_error


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
