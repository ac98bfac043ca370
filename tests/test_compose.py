"""docker-compose.yaml: no secret has a default, the services agree with each other, its paths are in the repository."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docker-compose.yaml"
SERVICES = yaml.safe_load(FILE.read_text())["services"]
FOLDERS = ["config", "dags", "include", "plugins"]
AIRFLOW = ["init", "api-server", "scheduler", "dag-processor", "triggerer"]
REQUIRED = {
    "POSTGRES_PASSWORD",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW_ADMIN_PASSWORD",
    "AIRFLOW_CONN_ANALYTICS_DB",
}
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY$|_CONN(_|$)")
MANDATORY = re.compile(r"\$\{(\w+):\?([^}]*)\}")


def test_services_are_those_of_an_airflow_deployment() -> None:
    assert set(SERVICES) == {"postgres", *AIRFLOW}


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
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            version = subprocess.run([*command, "version"], capture_output=True, check=False)
            if version.returncode == 0:
                return command
    pytest.skip("neither `docker compose` nor `docker-compose` is on PATH")


def config(compose: list[str], folder: Path, secrets: dict[str, str]) -> subprocess.CompletedProcess[str]:
    file = folder / "secrets.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in secrets.items()))
    environment = {name: value for name, value in os.environ.items() if name not in REQUIRED}
    command = [*compose, "--file", str(FILE), "--env-file", str(file), "config", "--quiet"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_docker_compose_accepts_the_file_and_names_what_is_missing(compose: list[str], tmp_path: Path) -> None:
    secrets = dict.fromkeys(REQUIRED, "x")
    complete = config(compose, tmp_path, secrets)
    assert (complete.returncode, complete.stderr) == (0, "")
    for name in REQUIRED:
        refused = config(compose, tmp_path, {key: value for key, value in secrets.items() if key != name})
        assert refused.returncode != 0
        assert f"Set {name} in .env to " in refused.stderr
