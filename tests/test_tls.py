"""TLS by the extra of the connection: the server's certificate is checked, and a server that wants TLS refuses others.

The embedded server cannot speak TLS, so this needs another one: see POSTGRES in the Makefile.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import embedded
from web_analytics.postgres import SessionPostgresHook, sentence

SUBJECT = ["-subj", "/CN=database", "-addext", "subjectAltName=IP:127.0.0.1"]
NEW = ["openssl", "req", "-new", "-x509", "-nodes", "-days", "2", *SUBJECT]


def programs() -> str | None:
    """The folder of a server's programs with TLS."""
    folders = [os.environ.get("POSTGRES"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
    for folder in folders:
        if folder and (config := Path(folder, "pg_config")).exists():
            options = subprocess.run([config, "--configure"], capture_output=True, text=True, check=True).stdout
            if "--with-openssl" in options or "--with-ssl=openssl" in options:
                return folder
    return None


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[embedded.Server, Path]]:
    """A server that takes connections with TLS only, and its certificate."""
    folder = programs()
    if not folder or not shutil.which("openssl"):
        pytest.skip("there is no PostgreSQL with TLS, or no openssl")
    monkeypatch.setenv("POSTGRES", folder)
    server = embedded.start(tmp_path, "-c fsync=off")
    try:
        key, file = server.data / "server.key", server.data / "server.crt"
        subprocess.run([*NEW, "-keyout", key, "-out", file], check=True, capture_output=True)
        key.chmod(0o600)
        for path in (key, file):
            shutil.chown(path, server.data.owner())
        (server.data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\n")
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET ssl = on")
        server.restart()
        shutil.copy(file, tmp_path / "root.crt")
        yield server, tmp_path / "root.crt"
    finally:
        server.stop("immediate")
        shutil.rmtree(server.home, ignore_errors=True)


def test_tls_by_the_extra_of_the_connection(
    certificate: tuple[embedded.Server, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, root = certificate

    def is_encrypted(**extra: Any) -> bool:
        connection = {"conn_type": "postgres", "host": "127.0.0.1", "port": server.port, "schema": "postgres"}
        value = json.dumps(connection | {"login": "postgres", "extra": extra})
        monkeypatch.setenv("AIRFLOW_CONN_ANALYTICS_DB", value)
        with SessionPostgresHook(postgres_conn_id="analytics_db", session_settings={}).get_conn() as connected:
            [row] = connected.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchall()
        return bool(row[0])

    assert is_encrypted(sslmode="verify-full", sslrootcert=str(root))
    root.unlink()
    for extra in ({"sslmode": "disable"}, {"sslmode": "verify-full", "sslrootcert": str(root)}):
        with pytest.raises(psycopg.OperationalError) as refused:
            is_encrypted(**extra)
        said = sentence(refused.value)
        assert ("no encryption" if extra["sslmode"] == "disable" else "root certificate") in said
        assert len(said.splitlines()) == 1
