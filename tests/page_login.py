"""Airflow's own login for the tests of the Analytics page, with one user who may not see everything."""

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class Login(SimpleAuthManager):
    """The simple auth manager, but `clerk` may not see one job."""

    def is_authorized_dag(self, **question: Any) -> bool:
        """Whether the user may do this with the DAG."""
        hidden = question["user"].username == "clerk" and question["details"].id == "archive_old_analytics"
        return not hidden and super().is_authorized_dag(**question)
