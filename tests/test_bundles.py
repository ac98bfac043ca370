"""The three DAGs from a git repository: each version's code with its own SQL; what other executors start them with."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from airflow.configuration import conf

from conftest import ROOT
from repository import Repository

GIT_BUNDLE = "airflow.providers.git.bundles.git.GitDagBundle"
FOLDER = "include/sql/archive_old_analytics"
# In a process of its own: the tests' has imported web_analytics from this checkout.
LOAD = """
import json, sys
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag
bundle = DagBundlesManager().get_bundle("web-analytics", version=sys.argv[1])
bundle.initialize()
bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
dag = bag.dags["archive_old_analytics"]
templates = dag.get_template_env()
file = dag.get_task("delete_event_batch").partial_kwargs["sql"]
found = {
    "errors": bag.import_errors,
    "dags": {dag.dag_id: dag.template_searchpath for dag in bag.dags.values()},
    "sql": templates.loader.get_source(templates, file)[0],
}
print("\\n" + json.dumps(found))
"""


class Bundle(Repository):
    """A git repository and Airflow's copies of it, in `storage`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "repository")
        self.storage = folder / "bundles"

    def load(self, version: str) -> dict[str, Any]:
        """What Airflow finds in a version."""
        kwargs = {"repo_url": str(self.folder), "tracking_ref": "main", "subdir": "dags"}
        environment = os.environ | {
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(self.storage),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
                [{"name": "web-analytics", "classpath": GIT_BUNDLE, "kwargs": kwargs}]
            ),
            "AIRFLOW_CONN_GIT_DEFAULT": '{"conn_type": "git"}',
        }
        command = [sys.executable, "-c", LOAD, version]
        loaded = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert loaded.returncode == 0, loaded.stderr
        assert "git_default" not in loaded.stdout + loaded.stderr
        found: dict[str, Any] = json.loads(loaded.stdout.splitlines()[-1])
        return found


def test_a_version_has_its_own_sql_after_a_file_was_renamed(tmp_path: Path) -> None:
    repository = Bundle(tmp_path)
    old = (ROOT / FOLDER / "delete_event_batch.sql").read_text()
    new = "-- It has another name.\n" + old
    repository.rename_batches()
    (repository.folder / FOLDER / "delete_listed_events.sql").write_text(new)
    second = repository.commit()
    for commit, sql in ((second, new), (repository.first, old)):
        found = repository.load(commit)
        root = repository.storage / "web-analytics" / "versions" / commit
        assert found["errors"] == {}
        assert set(found["dags"]) == {
            "aggregate_daily_analytics",
            "archive_old_analytics",
            "cleanup_analytics_sessions",
        }
        assert set(map(tuple, found["dags"].values())) == {(str(root / "include" / "sql"),)}
        assert found["sql"] == sql
    assert not list((repository.storage / "web-analytics" / "versions" / second).rglob("delete_event_batch.sql"))


PRELOADED = """
import sys
sys.argv[1:] = {command}
import airflow.settings
loaded = {{"airflow.providers.postgres.hooks.postgres", "git"}} & set(sys.modules)
print(*sorted(loaded), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "loaded"),
    [
        (["scheduler"], "airflow.providers.postgres.hooks.postgres git"),
        (["celery", "worker"], "airflow.providers.postgres.hooks.postgres git"),
        (["api-server"], ""),
    ],
)
def test_tasks_are_forked_from_what_has_loaded_their_modules(command: list[str], loaded: str) -> None:
    """Airflow reads its local settings at its import, before a Celery worker makes its pool."""
    bundle = {"name": "web-analytics", "classpath": GIT_BUNDLE, "kwargs": {}}
    environment = os.environ | {
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "PYTHONPATH": str(ROOT / "config"),
    }
    code = [sys.executable, "-c", PRELOADED.format(command=command)]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == loaded


def test_pod_template_is_what_airflow_and_the_jobs_need() -> None:
    pod = yaml.safe_load((ROOT / "docs" / "examples" / "pod_template.yaml").read_text())
    assert (pod["kind"], pod["spec"]["restartPolicy"]) == ("Pod", "Never")
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    [container] = pod["spec"]["containers"]
    assert (container["name"], container["image"]) == ("base", f"apache/airflow:{version('apache-airflow')}")
    values = {setting["name"]: setting.get("value") for setting in container["env"]}
    for name in values:
        if name.startswith("AIRFLOW__"):
            _, section, option = name.lower().split("__")
            assert conf.has_option(section, option) or option in conf.configuration_description[section]["options"]
    assert values["AIRFLOW_CONN_ANALYTICS_DB"] is None  # it is a secret
    [bundle] = json.loads(values["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
    module, name = bundle["classpath"].rsplit(".", 1)
    assert getattr(import_module(module), name)(name=bundle["name"], **bundle["kwargs"]).path.name == "dags"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"bundles": values["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH"]}
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == list(mounts)
