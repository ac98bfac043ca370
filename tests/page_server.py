"""The Analytics page in a real api-server, for its tests."""

import html
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest

import embedded
from conftest import ROOT, Database
from local_airflow import READER, Airflow

USERS = {"admin": "admin", "viewer": "viewer", "clerk": "viewer", "guest": ""}
PASSWORD = "secret"


class Page:
    """The page as a user asks for it. Its connection is kept in Airflow, as `Admin > Connections` does."""

    password = PASSWORD

    def __init__(self, airflow: Airflow, tokens: dict[str, str]) -> None:
        self.airflow = airflow
        self.tokens = tokens

    def connect(self, database: Database, **changes: Any) -> None:
        """Define Airflow's connection anew."""
        self.disconnect()
        info = database.connection.info
        connection = {
            "connection_id": "analytics_reader",
            "conn_type": "postgres",
            "host": "127.0.0.1",
            "port": info.port,
            "schema": info.dbname,
            "login": READER,
            "extra": json.dumps({"options": "-c search_path=analytics,public"}),
        }
        self.airflow.call("POST", "/api/v2/connections", connection | changes)

    def disconnect(self) -> None:
        """Remove Airflow's connection."""
        self.request("/api/v2/connections/analytics_reader", "DELETE", "admin")

    def request(self, path: str, method: str = "GET", user: str = "viewer") -> tuple[int, bytes]:
        """The status and the content of an answer, to a user or to `nobody`."""
        headers = {"Authorization": f"Bearer {self.tokens[user]}"} if user in self.tokens else {}
        request = urllib.request.Request(self.airflow.url + path, method=method, headers=headers)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def headers(self, path: str, user: str = "viewer") -> Message:
        """The headers of an answer."""
        login = {"Authorization": f"Bearer {self.tokens[user]}"}
        request = urllib.request.Request(self.airflow.url + path, headers=login)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
            headers: Message = response.headers
            return headers

    def part(self, name: str, **query: Any) -> str:
        """The HTML of a part of the page."""
        status, content = self.request(f"/analytics/part/{name}?{urlencode(query)}")
        assert status == 200, content
        return content.decode()

    def text(self, name: str, **query: Any) -> str:
        """What a part of the page says, on one line."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.part(name, **query))).split())

    def charts(self, name: str, **query: Any) -> dict[str, Any]:
        """What the charts of a part are drawn from, by their ids."""
        found = re.findall(r'<canvas id="([^"]*)"[^>]*data-chart=\'([^\']*)\'', self.part(name, **query))
        return {canvas: json.loads(chart) for canvas, chart in found}


@pytest.fixture(scope="session")
def server_page(
    server: embedded.Server, template: str, airflow_metadata: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A real api-server with the plugin, which knows the DAGs."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {READER} LOGIN IN ROLE analytics_readers".encode())
    manager: Any = DagBundlesManager
    manager().sync_bundles_to_db()
    sync_bag_to_db(DagBag(str(ROOT / "dags")), "dags-folder", None)
    state = tmp_path_factory.mktemp("airflow")
    (state / "passwords.json").write_text(json.dumps(dict.fromkeys(USERS, PASSWORD)))
    with Airflow(state, server, {}, lock=0) as airflow:
        del airflow.environment["AIRFLOW_CONN_ANALYTICS_READER"]  # it would win over what the tests define
        airflow.environment |= {
            "AIRFLOW__CORE__AUTH_MANAGER": "page_login.Login",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in USERS.items()),
            "PYTHONPATH": str(ROOT / "tests"),
        }
        airflow.run("api-server", "--host", "127.0.0.1", "--port", str(airflow.port))
        deadline = time.monotonic() + 120
        while airflow._unhealthy():
            assert time.monotonic() < deadline, (airflow.logs / "api-server.log").read_text()[-3000:]
            time.sleep(0.2)
        login = {user: {"username": user, "password": PASSWORD} for user in USERS}
        tokens = {user: airflow.call("POST", "/auth/token", body)["access_token"] for user, body in login.items()}
        airflow.token = tokens["admin"]
        yield Page(airflow, tokens)


@pytest.fixture
def page(server_page: Page, database: Database) -> Page:
    """The page, connected to the test's own database."""
    server_page.connect(database)
    return server_page
