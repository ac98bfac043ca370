"""Preloads, into the processes that tasks are forked from, what every task of the bundle imports.

LocalExecutor forks its tasks from the scheduler, a Celery worker from itself: what is loaded there need not be loaded again
by each task, which is most of a short task's time. Airflow imports this file at start-up because $AIRFLOW_HOME/config is on
its path; in a Celery worker that is before its pool is forked.
"""

import importlib
import sys
from contextlib import suppress
from typing import Any

MODULES = (
    "airflow.api.common.trigger_dag",
    "airflow.providers.common.sql.operators.sql",
    "airflow.providers.postgres.hooks.postgres",
    "airflow.providers.standard.operators.python",
    "airflow.providers.standard.operators.trigger_dagrun",
    "airflow.sdk.definitions.decorators.task_group",
    "airflow.sdk.definitions.retry_policy",
    "airflow.sdk.execution_time.cache",
    "airflow.sdk.execution_time.timeout",
    "airflow.sdk.lineage",
    "croniter",
    "jinja2.ext",
    "pydantic_settings",
)

if {"scheduler", "dag-processor", "worker"} & set(sys.argv):
    for module in MODULES:
        importlib.import_module(module)
    from airflow.configuration import conf
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    manager: Any = ProvidersManagerTaskRuntime
    _ = manager().asset_factories
    # A task imports the class of every bundle, whichever its own is; the import of git also runs the program.
    bundles: Any = conf.getjson("dag_processor", "dag_bundle_config_list")
    for bundle in bundles:
        with suppress(ImportError):  # where no task runs, the package may be missing
            importlib.import_module(bundle["classpath"].rpartition(".")[0])
