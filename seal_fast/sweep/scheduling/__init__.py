"""Scheduling by Ray Tune. The only package that imports Ray; it is imported when a sweep runs."""

import os

# Ray reads these when it is imported: no usage reports, no logs and snapshots of its own (the ledger and the run
# folders hold the results), no messages on the terminal, and no kill of a worker's trainer, which has to write its
# checkpoint first.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_AIR_NEW_OUTPUT="0",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    RAY_DEDUP_LOGS_SKIP_REGEX=".",
    RAY_kill_child_processes_on_worker_exit="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    TUNE_DISABLE_STRICT_METRIC_CHECKING="1",
    TUNE_GLOBAL_CHECKPOINT_S="1000000",
    TUNE_RESULT_BUFFER_LENGTH="0",
    TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S="1000000",
)

# A cluster started by `ray start` asks for a token where the user has one; a driver sends it only in this mode.
if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or os.path.isfile(
    os.path.expanduser("~/.ray/auth_token")
):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
