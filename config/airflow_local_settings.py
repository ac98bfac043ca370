"""Preloads, into the scheduler, what every task of the bundle imports.

LocalExecutor forks its task processes from the scheduler: what is loaded there need not be loaded again by each task,
which is most of a short task's time. Airflow imports this file at start-up because $AIRFLOW_HOME/config is on its path.
"""

import importlib
import sys
from typing import Any

MODULES = (
    "airflow.api.common.trigger_dag",
    "airflow.dag_processing.bundles.local",
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

if {"scheduler", "dag-processor"} & set(sys.argv):
    for module in MODULES:
        importlib.import_module(module)
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    manager: Any = ProvidersManagerTaskRuntime
    _ = manager().asset_factories
