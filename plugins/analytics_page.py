"""Adds **Analytics** to Airflow's navigation: is everything all right, and the traffic of the websites.

Airflow imports this file in every task process, so the page itself (the package web_analytics_page, which
.airflowignore keeps from being imported likewise) is loaded only where its routes are asked for: in the api-server.
"""

import logging
from typing import Any

from airflow.plugins_manager import AirflowPlugin

ICON = (
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='none' stroke='{}'"
    " stroke-width='1.8' stroke-linecap='round'><path d='M3 21h18M6 17v-5M12 17V5M18 17v-8'/></svg>"
)


class AnalyticsPage(AirflowPlugin):
    """The page below /analytics, shown inside Airflow's UI."""

    name = "analytics_page"
    external_views = [  # noqa: RUF012 - as the base class declares it
        {
            "name": "Analytics",
            "href": "analytics/",  # relative, so that it works where Airflow has a base_url with a path
            "url_route": "analytics",
            "destination": "nav",
            "nav_top_level": True,
            "icon": ICON.format("black"),
            "icon_dark_mode": ICON.format("white"),
        }
    ]

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The page's routes; none where they cannot be loaded, since the api-server must start all the same."""
        try:
            from web_analytics_page.app import app
        except Exception:
            logging.getLogger(__name__).exception("The Analytics page cannot be loaded")
            return []
        return [{"app": app, "url_prefix": "/analytics", "name": "Analytics"}]
