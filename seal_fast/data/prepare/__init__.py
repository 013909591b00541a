"""`prepare`: official archives to one checked .tar that --data takes."""

from seal_fast.data.prepare.command import main, prepare

__all__ = ["main", "prepare"]
