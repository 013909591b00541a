"""The two errors a user can cure; the commands print their sentence without a traceback and exit with their code."""


class UsageError(Exception):
    """A wrong flag, value or file named by the user. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """Something failed while running: a corrupt image, a full disk, a NaN loss. Exit code 1."""

    exit_code = 1
