"""Scheduling by Ray Tune: the only package that imports Ray, and nothing imports it before a sweep runs."""

import os

# Before Ray is imported, which reads them then: no reports to its makers, no logs of its own per trial, no snapshots.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_AIR_NEW_OUTPUT="0",
    RAY_CHDIR_TO_TRIAL_DIR="0",
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    TUNE_DISABLE_STRICT_METRIC_CHECKING="1",
    TUNE_GLOBAL_CHECKPOINT_S="1000000",
    TUNE_RESULT_BUFFER_LENGTH="0",
    TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S="1000000",
)
