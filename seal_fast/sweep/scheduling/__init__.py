"""Scheduling by Ray Tune: the only package that imports Ray, and nothing imports it before a sweep runs."""

import os
from pathlib import Path

# Before Ray is imported, which reads them then: no reports to its makers, no logs of its own per trial, no snapshots,
# none of its messages on the terminal (the ledger and the live table tell of failures);
# and what ends a worker does not kill its trainer at once, which could not write its checkpoint then.
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

# Timers of the Ray that a sweep starts for itself, made for clusters that come and go and for tasks of milliseconds.
# Whenever one fires, it takes a core from a trial. What the log monitor, the autoscaler and the records of tasks would
# tell, nothing here reads.
for _name, _value in {
    "LOG_NAME_UPDATE_INTERVAL_S": "1000000",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # from so many files on, the interval above holds
    "AUTOSCALER_UPDATE_INTERVAL_S": "1000000",
    "GCS_CHECK_ALIVE_INTERVAL_SECONDS": "1000000",  # these two: the dashboard's server, which Ray starts in any case
    "METRICS_RECORD_INTERVAL_S": "1000000",
    "RAY_task_events_report_interval_ms": "0",  # never
    "RAY_event_stats": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_report_worker_backlog_interval_ms": "10000",
    "RAY_raylet_check_gc_period_milliseconds": "10000",
    "RAY_kill_idle_workers_interval_ms": "10000",
    "RAY_local_fs_monitor_interval_ms": "10000",
    "RAY_object_manager_timer_freq_ms": "10000",
    "RAY_memory_monitor_refresh_ms": "2000",
}.items():
    os.environ.setdefault(_name, _value)

# A cluster that `ray start` has started asks for a token where the user has one, as every Ray on one machine leaves it
# (Ray 2.59); but who connects to it must be told to bring it.
if (
    any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    or (Path.home() / ".ray" / "auth_token").is_file()
):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
