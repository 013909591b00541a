"""The two errors a user can cure; the commands print their sentence without a traceback and exit with their code."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path


class UsageError(Exception):
    """A wrong flag, value or file named by the user. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """Something failed while running: a corrupt image, a full disk, a NaN loss. Exit code 1."""

    exit_code = 1


# What the operating system refuses without being broken: a feature that a file system lacks.
UNSUPPORTED = frozenset((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EINVAL))
NO_MMAP = UNSUPPORTED | {errno.ENODEV, errno.EACCES, errno.EPERM}

_CURES = {
    errno.ENOMEM: "free memory, or lower --batch-size, split it with --accumulate, or use --input stream",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close programs, or raise the machine's limit on open files",
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space, or ask for a larger quota",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "check the disk or the network that it is on",
    errno.ESTALE: "mount the file system again",
}


def errno_of(error: BaseException) -> int:
    """The operating system's number for an error; 0 if it has none. safetensors has it in the text only."""
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    found = re.search(r"\(os error (\d+)\)", str(error))
    return number or (int(found[1]) if found else 0)


def reason(error: BaseException) -> str:
    """What the operating system says of an error, such as `Permission denied`."""
    return os.strerror(errno_of(error)) if errno_of(error) else str(error)


def system_error(error: BaseException) -> UsageError | RunError | None:
    """One sentence for what the machine refuses: memory, open files, disk, permission; None for any other error.

    A UsageError or RunError is returned as it is.
    """
    if isinstance(error, UsageError | RunError):
        return error
    number, text = errno_of(error), str(error)
    # torch's allocators raise RuntimeError; on a GPU it is a subclass whose text begins with CUDA out of memory
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        number = errno.ENOMEM
    if number not in _CURES:
        return None
    name = getattr(error, "filename", None)
    return RunError(f"{f'{name}: ' if name else ''}{os.strerror(number)}: {_CURES[number]}")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint at the nearest of some names, or nothing."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]}?" if near else ""


def last_message(log: Path, start: int = 0) -> str:
    """The last error sentence in a command's output after its first `start` bytes, or else its last line."""
    try:
        text = log.read_bytes()[start:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].strip()
