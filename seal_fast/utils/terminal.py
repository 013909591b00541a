"""Printing for people: a name that the terminal cannot show is escaped, a terminal that is gone is dropped."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator


def prepare_streams() -> None:
    """Make stdout and stderr take any text, and keep closed descriptors from becoming those of the next opened file."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def shown(name: object) -> str:
    """A file name that can be printed and written as UTF-8: bytes of it that are not UTF-8 become escapes."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def dropping(name: str = "stdout") -> Iterator[None]:
    """Send a stream to /dev/null for good if writing to it fails: closed, `| head`, a full disk, a terminal gone."""
    try:
        yield
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError), open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), getattr(sys, name).fileno())


def say(text: object, name: str = "stdout") -> None:
    """Print a line to stdout or stderr and flush it."""
    stream = getattr(sys, name)
    with dropping(name):
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            print(str(text).encode("ascii", "backslashreplace").decode(), file=stream, flush=True)
