"""Scheduling by Ray Tune: the only package that imports Ray, and nothing imports it before a sweep runs."""

import os
from pathlib import Path

# Before Ray is imported, which reads them then: no reports to its makers, no logs of its own per trial, no snapshots;
# and what ends a worker does not kill its trainer at once, which could not write its checkpoint then.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_AIR_NEW_OUTPUT="0",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_kill_child_processes_on_worker_exit="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    TUNE_DISABLE_STRICT_METRIC_CHECKING="1",
    TUNE_GLOBAL_CHECKPOINT_S="1000000",
    TUNE_RESULT_BUFFER_LENGTH="0",
    TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S="1000000",
)

# A cluster that `ray start` has started asks for a token where the user has one, as every Ray on one machine leaves it
# (Ray 2.59); but who connects to it must be told to bring it.
if (
    any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    or (Path.home() / ".ray" / "auth_token").is_file()
):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
