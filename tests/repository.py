"""A git repository that GitDagBundle follows."""

import shutil
import subprocess
from pathlib import Path

from local_airflow import REPOSITORY


class Repository:
    """A git repository in `folder` with this checkout's DAGs and their SQL; `first` is its first commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("dags", "include"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        self.git("init", "--quiet", "--initial-branch=main")
        self.first = self.commit()

    def git(self, *arguments: str) -> str:
        """The output of git."""
        author = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        command = ["git", "-C", str(self.folder), *author, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self) -> str:
        """Commit all; return the commit."""
        self.git("add", "--all")
        self.git("-c", "commit.gpgsign=false", "commit", "--quiet", "--message", "Change")
        return self.git("rev-parse", "HEAD")

    def rename_batches(self) -> None:
        """Rename the SQL files of the batches, consistently, without a commit."""
        code = self.folder / "dags" / "web_analytics" / "retention.py"
        code.write_text(code.read_text().replace("/delete_{table}_batch.sql", "/delete_listed_{table}s.sql"))
        for table in ("event", "session"):
            sql = "include/sql/archive_old_analytics"
            self.git("mv", f"{sql}/delete_{table}_batch.sql", f"{sql}/delete_listed_{table}s.sql")
