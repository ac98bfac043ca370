"""Preloads, into the scheduler, what every task of the bundle imports.

LocalExecutor forks its task processes from the scheduler: what is loaded there need not be loaded again by each task,
which is most of a short task's time. Airflow imports this file at start-up because plugins/ is on its path.
"""

import sys

if "scheduler" in sys.argv:
    import airflow.dag_processing.bundles.local
    import airflow.providers.common.sql.operators.sql
    import airflow.providers.postgres.hooks.postgres
    import airflow.providers.smtp.hooks.smtp
    import airflow.providers.standard.operators.python
    import airflow.sdk.definitions.decorators.task_group
    import croniter
    import jinja2.ext
    import pydantic_settings  # noqa: F401
