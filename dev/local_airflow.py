"""Airflow on this machine for the demo: its settings, its processes, and its REST API."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

from embedded import Server, free_port

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
USER = "admin"
READER = "airflow_reader"  # the login of the Analytics page in the database

HEALTH = {"scheduler": "scheduler", "dag-processor": "dag_processor", "triggerer": "triggerer"}


def environment(state: Path, server: Server, connection: dict[str, Any], port: int) -> dict[str, str]:
    """The environment of every Airflow process.

    The user's Airflow settings are about another Airflow and stay out; `ANALYTICS_*` settings are let in.
    `connection` becomes the connection `analytics_db`, and as READER `analytics_reader`; `port` is the api-server's.
    """
    foreign = ("AIRFLOW", "PG", "PYTHON", "VIRTUAL_ENV")
    url, local = f"http://127.0.0.1:{port}", "127.0.0.1,localhost"
    settings = {
        "CORE__DAGS_FOLDER": REPOSITORY / "dags",
        "CORE__PLUGINS_FOLDER": REPOSITORY / "plugins",
        "CORE__LOAD_EXAMPLES": False,
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 4,  # each is a process of 140 MB; more of them wait for the api-server
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": state / "passwords.json",
        "DATABASE__SQL_ALCHEMY_CONN": server.dsn("airflow").replace("://", "+psycopg2://"),
        "API__BASE_URL": url,
        "API__SECRET_KEY": secrets.token_hex(32),
        "API_AUTH__JWT_SECRET": secrets.token_hex(32),
        # A short task holds its slot until the next heartbeat, by default 5 seconds.
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": 0.2,  # a limit of few tasks at a time is refilled sooner
        "WORKERS__MIN_HEARTBEAT_INTERVAL": 1,
        "LOGGING__WORKER_LOG_SERVER_PORT": free_port(),
        "LOGGING__TRIGGER_LOG_SERVER_PORT": free_port(),
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": free_port(),
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    if sys.platform == "linux":  # where the preload of config/ works; 3.14 would start each task's process afresh
        settings["CORE__MP_START_METHOD"] = "fork"
    return (
        {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        | {f"AIRFLOW__{name}": str(value) for name, value in settings.items()}
        | {
            "AIRFLOW_HOME": str(state / "airflow"),
            "AIRFLOW_CONN_ANALYTICS_DB": json.dumps(connection),
            "AIRFLOW_CONN_ANALYTICS_READER": json.dumps(connection | {"login": READER}),
            "PYTHONPATH": str(REPOSITORY / "config"),  # elsewhere, $AIRFLOW_HOME/config is on the path
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            # Tasks talk to the api-server: not through a company's proxy.
            "NO_PROXY": local,
            "no_proxy": local,
        }
    )


class Airflow:
    """Airflow's processes, each in a session of its own, so that Ctrl-C in the terminal does not reach them.

    A guard process stops them if this one is killed, and has `lock` (a file descriptor) until they are gone.
    """

    def __init__(self, state: Path, server: Server, connection: dict[str, Any], lock: int) -> None:
        self.state, self.lock = state, lock
        self.logs = state / "logs"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = environment(state, server, connection, self.port)
        self.password = _password(state / "passwords.json")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.guard: subprocess.Popen[bytes] | None = None
        self.token = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, name: str, *arguments: str, command: Sequence[str | Path] = (), **environment: str) -> None:
        """Start `airflow name arguments…`, or `command` as this name; what it writes goes to logs/name.log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [*(command or (PROGRAMS / "airflow", name)), *arguments],
                cwd=self.state,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finish(self, name: str) -> None:
        """Wait for a process that ends by itself. RuntimeError if it failed."""
        if self.processes.pop(name).wait():
            raise RuntimeError(f"`airflow {name}` failed; its log is {self.logs / name}.log")

    def start(self, triggerer: bool) -> None:
        """Start Airflow, wait until it is healthy and log in. RuntimeError names what did not start."""
        self.launch(triggerer)
        self.log_in()

    def launch(self, triggerer: bool) -> None:
        """Start Airflow, beside what runs already."""
        self.run("api-server", "--host", "127.0.0.1", "--port", str(self.port))
        for name in ("scheduler", "dag-processor", *(["triggerer"] if triggerer else [])):
            self.run(name)
        sessions = [str(process.pid) for process in self.processes.values()]
        self.guard = subprocess.Popen(
            [sys.executable, __file__, *sessions],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[self.lock],
        )

    def log_in(self) -> None:
        """Wait until Airflow is healthy and log in. RuntimeError names what did not start."""
        deadline = time.monotonic() + 180
        while unhealthy := self._unhealthy():
            if time.monotonic() > deadline:
                raise RuntimeError(f"Airflow's {unhealthy} does not come up; its log is {self.logs / unhealthy}.log")
            time.sleep(0.3)
        credentials = {"username": USER, "password": self.password}
        self.token = self.call("POST", "/auth/token", credentials)["access_token"]

    def _unhealthy(self) -> str | None:
        try:
            health = self._request("GET", "/api/v2/monitor/health")
        except OSError:
            return "api-server"
        started = (name for name in HEALTH if name in self.processes)
        return next((name for name in started if health[HEALTH[name]]["status"] != "healthy"), None)

    def wait_for_dags(self, dag_ids: Collection[str]) -> None:
        """Wait until Airflow knows the DAGs. RuntimeError if it cannot import one."""
        deadline = time.monotonic() + 120
        while set(dag_ids) - {dag["dag_id"] for dag in self.call("GET", "/api/v2/dags")["dags"]}:
            for error in self.call("GET", "/api/v2/importErrors")["import_errors"]:
                reason = error["stack_trace"].strip().splitlines()[-1]
                raise RuntimeError(f"Airflow cannot import {error['filename']}: {reason}")
            if time.monotonic() > deadline:
                log = self.logs / "dag-processor.log"
                raise RuntimeError(f"Airflow does not find the DAGs {', '.join(dag_ids)}; its log is {log}")
            time.sleep(0.3)

    def trigger(self, dag_id: str, **params: Any) -> str:
        """Start a run as the UI's Trigger button does, with the Params of its form, and return its id."""
        run = self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": params})
        self.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})
        return str(run["dag_run_id"])

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Call the REST API and return its JSON. RuntimeError says what is dead, silent or refused."""
        try:
            return self._request(method, path, body)
        except OSError as error:
            log = self.logs / "api-server.log"
            raise RuntimeError(f"Airflow's api-server does not answer ({error}); its log is {log}") from error

    def _request(self, method: str, path: str, body: object = None) -> Any:
        self.check()  # had the api-server died, another program might answer on its port
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            reason = error.read().decode()[:500]
            raise RuntimeError(f"Airflow refused {method} {path}: {error.code} {reason}") from error

    def check(self) -> None:
        """RuntimeError if a process has died."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"Airflow's {name} stopped; its log is {self.logs / name}.log")

    def task_log(self, dag_id: str, run_id: str, task: dict[str, Any]) -> Path:
        """The log file of a task instance's last attempt."""
        folder = self.state / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"
        folder /= f"task_id={task['task_id']}"
        if task["map_index"] >= 0:
            folder /= f"map_index={task['map_index']}"
        return folder / f"attempt={task['try_number']}.log"

    def stop(self) -> None:
        """Stop everything that was started."""
        terminate([process.pid for process in self.processes.values()])
        for process in self.processes.values():
            process.wait()
        if self.guard:
            self.guard.kill()
            self.guard.wait()


def terminate(sessions: Collection[int], ask: bool = True) -> None:
    """End all processes of these sessions: ask, and after 15 seconds make them.

    Whole sessions, because Airflow puts each task into a process group of its own.
    """
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5))[not ask :]:
        for process in _members(sessions):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        deadline = time.monotonic() + patience
        while _members(sessions) and time.monotonic() < deadline:
            time.sleep(0.1)


def _members(sessions: Collection[int]) -> list[int]:
    found = []
    for process in psutil.pids():
        with suppress(OSError, psutil.Error):  # it has just ended, or is another user's
            if os.getsid(process) in sessions and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _password(file: Path) -> str:
    """The UI's password, made once and kept where only its owner can read it."""
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(json.dumps({USER: secrets.token_urlsafe(9)}))
    return str(json.loads(file.read_text())[USER])


if __name__ == "__main__":  # the guard: its standard input ends when the demo does
    sys.stdin.read()
    terminate([int(session) for session in sys.argv[1:]])
