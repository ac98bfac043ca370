"""The documents: every setting, Param, alert, metric, role and task is in them, and their commands and statements run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import embedded
from conftest import ROOT, SQL, Database
from dag_runs import dags
from web_analytics import watch
from web_analytics.settings import Settings

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DOCUMENTS = {path.name: path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
JOBS = ("aggregate_daily_analytics", "cleanup_analytics_sessions", "archive_old_analytics")
DSN = "postgresql://owner@host/database"


def blocks(text: str, language: str = "") -> list[str]:
    """The code blocks of a document in a language, without their indentation."""
    found = re.finditer(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(f"^{block[1]}", "", block[3], flags=re.MULTILINE) for block in found if block[2] == language]


def statements(text: str) -> list[str]:
    """The SQL of a document that PostgreSQL runs; DuckDB's is tried where the archive is."""
    return [block for block in blocks(text, "sql") if "read_parquet" not in block]


def commands(text: str) -> list[list[str]]:
    """The words of the commands in the blocks of a document."""
    lines = "\n".join(blocks(text)).replace("\\\n", " ").splitlines()
    known = ("python ", "make ", "sh ", "psql ", "docker compose ")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(known)]


def test_every_setting_is_documented_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `ANALYTICS_(\w+)` \| (?:`(.*?)`)? ?\|", README, re.MULTILINE))
    assert rows.keys() == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        assert rows[name.upper()] == str(field.default if field.default not in (None, []) else ""), name


@pytest.mark.parametrize("dag_id", JOBS)
def test_every_param_is_documented(dag_id: str) -> None:
    section = OPERATIONS.split("## Params")[1].split("\n## ")[0]
    for name in dags()[dag_id].params:
        assert f"`{name}`" in section, name


def test_every_alert_and_metric_is_documented() -> None:
    section = OPERATIONS.split("## Alerts")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`(?: \(per \w+\))? \| [^|]+ \| [^|]+ \|$", section, re.MULTILINE)
    assert sorted(rows) == sorted([*watch.CONDITIONS, "not_watched"])
    source = Path(watch.__file__).read_text()
    names = re.findall(r'stats\.\w+\(f?"web_analytics\.(\w+)"', source)
    names += re.findall(r'"(\w+)"', source.split("for name in (")[1].split(")")[0])
    assert len(names) == 7
    for name in [*names, "run_success", "run_failed"]:
        assert f".{name}`" in OPERATIONS, name


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    folder = ROOT if name == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", DOCUMENTS[name]):
        path, _, heading = target.partition("#")
        file = (folder / path) if path else folder / name
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_name_what_is_there(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(DOCUMENTS[name]):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        for word in words:
            if re.match(r"(dags|include|dev|docs|tests)/", word):
                assert (ROOT / word).exists(), words


def test_the_installers_command_and_the_panels(database: Database) -> None:
    """As the README and the operations have them, but for the database's address."""
    dsn = database.dsn
    found = [words for text in (README, OPERATIONS) for words in commands(text) if DSN in words]
    ran = []
    for words in found:
        if words[0] == "psql" and ("umami" in words[-2] or not shutil.which("psql")):
            continue  # Umami's tables are not here
        if words[0] == "docker" or "restore.py" in words[1]:
            continue  # one needs Docker's engine, the other an archive, as its own tests have
        command = [sys.executable if word == "python" else dsn if word == DSN else word for word in words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ran.append(words)
    assert ["python", "dags/web_analytics/schema.py", DSN] in ran


def test_statements_run(database: Database) -> None:
    database.event("2026-01-02T12:00Z", "shop.example", country="NZ")
    database.connection.execute("CREATE TABLE public.website (website_id uuid, name text)")
    database.connection.execute("SET search_path = public")  # a reader's own
    found = [block for text in DOCUMENTS.values() for block in statements(text)]
    assert len(found) > 5
    for block in found:
        if "DROP" not in block:
            database.connection.execute(block.encode())


def test_what_is_removed_leaves_the_application_as_it_was(tmp_path: Path) -> None:
    from web_analytics import schema

    state = """
        SELECT format('%s %s %s', nspname, relname, relacl) FROM pg_class
        INNER JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname !~ '^(pg_|information_schema)' ORDER BY 1
    """
    [removal] = [block for block in statements(OPERATIONS) if "DROP" in block]
    server = embedded.start(tmp_path, "-c fsync=off")
    try:
        with psycopg.connect(server.dsn(), autocommit=True, prepare_threshold=None) as connection:
            connection.execute((SQL.parents[1] / "dev" / "application.sql").read_bytes())
            before = connection.execute(state).fetchall()
            schema.install(server.dsn(), "analytics,public")
            assert connection.execute(state).fetchall() != before
            connection.execute(removal.encode())
            after = connection.execute(state).fetchall()
            roles = connection.execute(
                "SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'analytics')"
            ).fetchone()
        # The privileges of the owner, which were a default, are written down once others have had some.
        assert [row[0].split(" ")[:2] for row in after] == [row[0].split(" ")[:2] for row in before]
        assert "analytics_" not in " ".join(row[0].split(" ", 2)[2] for row in after)
        assert roles == (0,)
    finally:
        server.stop("immediate")
        shutil.rmtree(server.home, ignore_errors=True)
