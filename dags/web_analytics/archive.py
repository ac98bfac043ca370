"""Writes listed rows to Parquet files before they are deleted, one file per website and day, and reads such files back.

What is in a file is known from the file alone: it is read back into PostgreSQL, and the hash of each row is taken there.
Only a row that the database still has with just that hash is deleted.
"""

import hashlib
import io
import logging
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from airflow.sdk import Context, ObjectStoragePath
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from psycopg import sql

from web_analytics.postgres import PostgresOperator, printable
from web_analytics.settings import settings

log = logging.getLogger(__name__)

STEP = 100_000
"""Rows that are read in one transaction, unless one batch has more."""
BLOCKS = (1 << 24, 1 << 28, (1 << 31) - 1)
"""Bytes of text that are held in memory at a time: the first, or the next where a row has more."""
MOMENT = "timestamp with time zone"
TYPE = b"postgresql_type"
"""The key under which a column of a file says which type the table's had."""
TYPES = {MOMENT: "int64", "bigint": "int64", "integer": "int64", "smallint": "int64", "boolean": "bool"}
"""Types of columns that a file has as they are, a moment as microseconds since 1970; others are text."""

MARK = """
UPDATE analytics_purge_batch SET archived = CASE WHEN %(is_on)s THEN '{}'::bigint[] END
WHERE kind = %(kind)s AND (archived IS NOT NULL) <> %(is_on)s
"""
STEPS = """
SELECT array_agg(number ORDER BY number) AS numbers
FROM (
    SELECT number, sum(rows) OVER (ORDER BY number) - rows AS rows_before FROM analytics_purge_batch
    WHERE kind = %(kind)s AND (cardinality(archived) < rows OR array_position(archived, NULL) IS NOT NULL)
) AS batch
GROUP BY rows_before / %(step)s ORDER BY min(number)
"""
LISTED = """
SELECT listed.id FROM analytics_purge_batch
CROSS JOIN LATERAL unnest(ids || deleted_ids, archived) AS listed (id, hash)
WHERE number = ANY({numbers}) AND listed.hash IS NULL
"""
# The day is that of the stats, or else that in UTC: a session, or an event that was never counted, may be on no day. There
# is none before the first day of all, and stats are of no day before the year 1.
ROWS = """
COPY (
    SELECT {columns}, analytics_row_hash((source.*)::text), source.website_id, day.date
    FROM (SELECT DISTINCT id FROM ({listed}) AS name) AS name
    INNER JOIN {table} AS source ON source.id = name.id
    CROSS JOIN LATERAL (
        SELECT coalesce(
            (
                SELECT stats.date FROM analytics_daily_stats AS stats
                WHERE stats.website_id = source.website_id
                    AND stats.date BETWEEN greatest(source.{time}, '0001-01-02')::date - 1
                    AND (source.{time})::date + 1
                    AND stats.starts_at <= source.{time} AND stats.ends_at > source.{time}
                LIMIT 1
            ),
            (source.{time})::date
        ) AS date
    ) AS day
    ORDER BY source.website_id COLLATE "C", day.date, source.{time}, source.id COLLATE "C"
) TO STDOUT (FORMAT csv)
"""
# With the types of the file's columns, so that it does not matter which columns the table has got or lost since then.
VERIFY = """
WITH restored AS (
    INSERT INTO verified SELECT "/file", id, analytics_row_hash(ROW({values})::text) FROM read_back
    RETURNING file, hash
)
SELECT file, count(*) AS rows, bit_xor(hash) AS content_hash FROM restored GROUP BY file
"""
FINISH = """
UPDATE analytics_purge_batch AS batch
SET archived = (
    SELECT array_agg(coalesce(listed.hash, verified.hash) ORDER BY listed.place)
    FROM unnest(batch.ids || batch.deleted_ids, batch.archived) WITH ORDINALITY AS listed (id, hash, place)
    LEFT JOIN verified ON listed.id = verified.id
)
WHERE batch.number = ANY(%(numbers)s)
"""


@dataclass
class Table:
    """A table of the application: `kind` is event or session, `columns` its names and types in their order."""

    kind: str
    columns: Sequence[tuple[str, str]]

    @property
    def name(self) -> sql.Identifier:
        """Its name."""
        return sql.Identifier(f"analytics_{self.kind}")

    @property
    def exported(self) -> sql.Composable:
        """The columns as a file has them. It has no room for the last 30 years that PostgreSQL knows: they are not right."""
        moment = sql.SQL(
            "CASE WHEN source.{0} = 'infinity' THEN 9223372036854775807 WHEN source.{0} = '-infinity' THEN"
            " -9223372036854775807 WHEN source.{0} < '294246-01-01' THEN (extract(epoch FROM source.{0}) * 1000000)::bigint"
            " END"
        )
        plain, text = sql.SQL("source.{}"), sql.SQL("source.{}::text")
        return sql.SQL(", ").join(
            (moment if kind == MOMENT else plain if kind in TYPES else text).format(sql.Identifier(name))
            for name, kind in self.columns
        )

    @property
    def restored(self) -> sql.Composable:
        """The columns of `read_back` as the table has them. Days and the rest of one, since floats are not exact."""
        moment = sql.SQL(
            "CASE {0} WHEN 9223372036854775807 THEN 'infinity' WHEN -9223372036854775807 THEN '-infinity'"
            " ELSE timestamptz 'epoch' + make_interval(days => ({0} / 86400000000)::integer)"
            " + ({0} % 86400000000) * interval '1 microsecond' END"
        )
        plain = sql.SQL("{}")
        return sql.SQL(", ").join(
            (moment if kind == MOMENT else plain).format(sql.Identifier(name))
            + sql.SQL("::" + kind)  # as the catalog writes it
            for name, kind in self.columns
        )

    def make_temporary(self, connection: psycopg.Connection[Any]) -> None:
        """Make the temporary tables for what is read back: `read_back` has a file's rows, `verified` their hashes."""
        columns = sql.SQL(", ").join(
            sql.SQL("{} " + {"int64": "bigint", "bool": "boolean"}.get(TYPES.get(kind, ""), "text")).format(
                sql.Identifier(name)
            )
            for name, kind in self.columns
        )
        connection.execute(sql.SQL('CREATE TEMPORARY TABLE read_back ("/file" bigint, {})').format(columns))
        connection.execute("CREATE TEMPORARY TABLE verified (file bigint, id text, hash bigint)")


def describe(connection: Any, kind: str) -> Table:
    """Return the application's table as the catalog has it."""
    rows = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_catalog.pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [f"analytics_{kind}"],
    ).fetchall()
    return Table(kind, rows)


def sentence(error: BaseException) -> str:
    """Return what went wrong with a file, in one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def address(root: str, kind: str, website_id: str, date: str, number: int) -> str:
    """Return the address of a file: any website has a folder of its own, whatever characters and length its id has."""
    folder = urllib.parse.quote(website_id, safe="").replace(".", "%2E")
    if not 0 < len(folder) <= 200:
        folder = f"{folder[:100]}%{hashlib.sha256(website_id.encode()).hexdigest()}"
    return f"{root}/{kind}/website={folder}/date={date}/{number}.parquet"


class Pipe(io.RawIOBase):
    """The rows of a COPY as a file to read."""

    def __init__(self, copy: psycopg.Copy) -> None:
        self.copy, self.rest = copy, bytearray()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, none at the end."""
        while len(self.rest) < size and (more := self.copy.read()):
            self.rest += more  # in place: a row is small beside what is asked for
        found = bytes(self.rest[:size])
        del self.rest[:size]
        return found


@dataclass
class File:
    """A file that is being written: what PostgreSQL said of its rows."""

    number: int
    website_id: str
    date: str
    uri: str
    rows: int = 0
    content_hash: int = 0
    bytes: int = 0
    problem: str = ""
    writer: Any = None
    sink: Any = None


def slices(batch: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield a website, a day and the rows of them, of a batch of rows that are sorted by these: its last two columns."""
    websites, dates = batch.column(batch.num_columns - 2).to_pylist(), batch.column(batch.num_columns - 1).to_pylist()
    start = 0
    for end in range(1, len(dates) + 1):
        if end == len(dates) or (websites[end], dates[end]) != (websites[start], dates[start]):
            yield websites[start], dates[start], batch.slice(start, end - start)
            start = end


@dataclass
class Archive:
    """Writes and verifies the files of one kind of rows: `reader` and `writer` are connections, `root` the folder."""

    root: str
    table: Table
    reader: psycopg.Connection[Any]
    writer: psycopg.Connection[Any]
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the temporary tables."""
        # That a file is being written may be lost in a crash of the server; what is marked as verified may not.
        self.writer.execute("SET synchronous_commit = off")
        self.table.make_temporary(self.writer)

    def write_step(self, numbers: Sequence[int]) -> list[File]:
        """Write the rows of some batches that no file has; return the files."""
        import pyarrow

        for block in BLOCKS:
            try:
                return self.write_blocks(numbers, block)
            except pyarrow.ArrowInvalid as error:
                if "block size" not in str(error) or block == BLOCKS[-1]:
                    raise
                self.remove_leftovers()
        return []

    def write_blocks(self, numbers: Sequence[int], block: int) -> list[File]:
        """Write the rows of some batches, of which no one may have more than a block."""
        import pyarrow
        import pyarrow.csv

        names = [name for name, _ in self.table.columns]
        plain = {"int64": pyarrow.int64(), "bool": pyarrow.bool_()}
        types = {name: plain.get(TYPES.get(kind, ""), pyarrow.string()) for name, kind in self.table.columns}
        extra = {"/hash": pyarrow.int64(), "/website": pyarrow.string(), "/date": pyarrow.string()}
        stored = pyarrow.schema(
            pyarrow.field(
                name, pyarrow.timestamp("us", "UTC") if kind == MOMENT else types[name], metadata={TYPE: kind}
            )
            for name, kind in self.table.columns
        )
        options = {
            "read_options": pyarrow.csv.ReadOptions(column_names=[*names, *extra], block_size=block, use_threads=False),
            "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
            "convert_options": pyarrow.csv.ConvertOptions(
                column_types=types | extra,
                true_values=["t"],
                false_values=["f"],
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        }
        query = sql.SQL(ROWS).format(
            columns=self.table.exported,
            listed=sql.SQL(LISTED).format(numbers=sql.Literal(list(numbers))),
            table=self.table.name,
            time=sql.Identifier("timestamp" if self.table.kind == "event" else "last_activity_at"),
        )
        files: list[File] = []
        with self.reader.cursor().copy(query) as copy:
            try:
                batches = pyarrow.csv.open_csv(Pipe(copy), **options)
            except pyarrow.ArrowInvalid as error:
                if "Empty CSV" in str(error):
                    return []
                raise
            for batch in batches:
                for website_id, date, rows in slices(batch):
                    if not files or (files[-1].website_id, files[-1].date) != (website_id, date):
                        self.close(files)
                        files.append(self.open(website_id, date, stored))
                    self.append(files[-1], rows, stored)
        self.close(files)
        return files

    def open(self, website_id: str, date: str, schema: Any) -> File:
        """Begin a file, which the manifest knows of from now on."""
        import pyarrow
        import pyarrow.parquet

        [number] = self.writer.execute(
            "INSERT INTO analytics_archive_file (kind, website_id, date, uri) VALUES (%s, %s, %s, '') RETURNING number",
            [self.table.kind, website_id, date],
        ).fetchone() or [0]
        uri = address(self.root, self.table.kind, website_id, date, number)
        self.writer.execute("UPDATE analytics_archive_file SET uri = %s WHERE number = %s", [uri, number])
        file = File(number, website_id, date, uri)
        try:
            path: Any = ObjectStoragePath(uri)
            if path.protocol == "file":
                path.parent.mkdir(parents=True, exist_ok=True)
            # A file has hundreds of small parts.
            file.sink = pyarrow.output_stream(path.open("wb"), buffer_size=1 << 16)
            file.writer = pyarrow.parquet.ParquetWriter(file.sink, schema, compression="zstd")
        except Exception as error:  # noqa: BLE001 - whatever a store may raise
            file.problem = sentence(error)
        return file

    @staticmethod
    def append(file: File, rows: Any, schema: Any) -> None:
        """Write some rows to a file."""
        import pyarrow

        file.rows += rows.num_rows
        for value in rows.column(len(schema)).to_pylist():
            file.content_hash ^= value
        if not file.problem:
            try:
                columns = [rows.column(index).cast(field.type) for index, field in enumerate(schema)]
                file.writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            except Exception as error:  # noqa: BLE001
                file.problem = sentence(error)

    @staticmethod
    def close(files: Sequence[File]) -> None:
        """End the last file."""
        for closable in (files[-1].writer, files[-1].sink) if files else ():
            try:
                if closable is not None:
                    closable.close()
            except Exception as error:  # noqa: BLE001
                files[-1].problem = files[-1].problem or sentence(error)

    def verify(self, files: Sequence[File]) -> None:
        """Read files back, and keep the hashes of the rows of those that are as PostgreSQL wrote them."""
        written = [file for file in files if not file.problem]
        found: dict[int, tuple[int, int]] = {}
        try:
            with self.writer.transaction():
                found = read_back(self.writer, self.table, self.texts(written))
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            if len(written) > 1:  # it says of some row of some file that this cannot be
                for file in written:
                    self.verify([file])
                return
            written[0].problem = sentence(error)
        for file in written:
            rows, content_hash = found.get(file.number, (0, 0))
            if not file.problem and (rows, content_hash) != (file.rows, file.content_hash):
                file.problem = f"it was read back with {rows:,} row(s) of {file.rows:,}, or other values"
        wrong = [file.number for file in written if file.problem]
        self.writer.execute("DELETE FROM verified WHERE file = ANY(%s)", [wrong])

    def texts(self, files: Sequence[File]) -> Iterator[bytes]:
        """Yield what is in files of the store, as COPY takes it; one that cannot be read stops no other."""
        import pyarrow.parquet

        for file in files:
            try:
                path: Any = ObjectStoragePath(file.uri)
                file.bytes = path.stat().st_size
                with path.open("rb") as source:
                    yield from text_of(pyarrow.parquet.ParquetFile(source), self.table, file.number)
            except Exception as error:  # noqa: BLE001 - whatever a store may raise
                file.problem = sentence(error)

    def run_step(self, numbers: Sequence[int]) -> tuple[int, int]:
        """Write and verify the files of some batches; return how many files and rows."""
        self.writer.execute("TRUNCATE verified")
        files = self.write_step(numbers)
        self.verify(files)
        self.problems += [
            printable(f"{file.website_id} {file.date} ({file.uri}: {file.problem})") for file in files if file.problem
        ]
        files = [file for file in files if not file.problem]
        with self.writer.transaction():
            self.writer.execute("SET LOCAL synchronous_commit = on")
            self.writer.execute("ANALYZE verified")
            self.writer.execute(FINISH, {"numbers": list(numbers)})
            self.writer.cursor().executemany(
                "UPDATE analytics_archive_file SET rows = %s, content_hash = %s, bytes = %s, verified_at = now()"
                " WHERE number = %s",
                [(file.rows, file.content_hash, file.bytes, file.number) for file in files],
            )
        return len(files), sum(file.rows for file in files)

    def remove_leftovers(self) -> None:
        """Remove the files that an earlier try did not finish. Where that cannot be, the next one tries it again."""
        query = "SELECT number, uri FROM analytics_archive_file WHERE kind = %s AND verified_at IS NULL"
        for number, uri in self.writer.execute(query, [self.table.kind]).fetchall():
            try:
                if uri:
                    ObjectStoragePath(uri).unlink(missing_ok=True)
            except Exception as error:  # noqa: BLE001
                log.warning("%s was not finished, and cannot be removed: %s", uri, sentence(error))
            else:
                self.writer.execute("DELETE FROM analytics_archive_file WHERE number = %s", [number])


def described(file: Any, connection: psycopg.Connection[Any], kind: str) -> Table:
    """Return the table that a file of the store is of, as it was then, by what the file says of its columns.

    :raises ValueError: it is not a file of the archive. What it says of types is not believed: it goes into statements.
    """
    columns = [(field.name, (field.metadata or {}).get(TYPE, b"").decode()) for field in file.schema_arrow]
    for name, type_name in columns:
        known = "SELECT to_regtype(%s) IS NOT NULL AND %s !~ '--|/[*]'"
        if not type_name or connection.execute(known, [type_name, type_name]).fetchone() != (True,):
            raise ValueError(
                f"its column {name} is of the type {type_name or 'that it does not name'}, which is not known"
            )
    return Table(kind, columns)


def text_of(file: Any, table: Table, number: int) -> Iterator[bytes]:
    """Yield the rows of a Parquet file as COPY takes them for `read_back`, with the file's number."""
    import pyarrow
    import pyarrow.csv

    for group in range(file.num_row_groups):
        rows = file.read_row_group(group)
        columns = [pyarrow.repeat(number, rows.num_rows)] + [
            rows.column(name).cast(pyarrow.int64()) if kind == MOMENT else rows.column(name)
            for name, kind in table.columns
        ]
        text = pyarrow.BufferOutputStream()
        names = ["/file", *(name for name, _ in table.columns)]
        options = pyarrow.csv.WriteOptions(include_header=False)
        pyarrow.csv.write_csv(pyarrow.table(columns, names=names), text, options)
        yield text.getvalue()


def read_back(connection: psycopg.Connection[Any], table: Table, texts: Iterable[bytes]) -> dict[int, tuple[int, int]]:
    """Read rows of files into the temporary tables; return the count and the content hash of each file's rows.

    :param connection: in a transaction, with the settings of a session of the jobs.
    :raises psycopg.Error: they are not such rows.
    """
    connection.execute("TRUNCATE read_back")
    with connection.cursor().copy("COPY read_back FROM STDIN (FORMAT csv)") as copy:
        for text in texts:
            copy.write(text)
    found = connection.execute(sql.SQL(VERIFY).format(values=table.restored)).fetchall()
    return {number: (rows, content_hash) for number, rows, content_hash in found}


class ArchiveOperator(PostgresOperator):
    """Writes listed rows that are in no file yet to files, and marks those in the list whose file is right.

    Without the setting ``archive_uri``, it marks that there is no archive. The XCom is a list of one sentence for each file
    that could not be written or was not read back right: the rows of these stay, and are tried again by the next run.

    :param kind: ``event`` or ``session``.
    :raises AirflowException: a file failed, and there is another try.
    """

    def __init__(self, *, kind: str, **kwargs: Any) -> None:
        super().__init__(sql="SELECT 1", **kwargs)
        self.kind = kind

    def work(self, context: Context) -> list[str]:
        """Archive the rows, but for a dry run."""
        root, params = settings.archive_uri, context["params"]
        if params and params["dry_run"]:
            return []
        writer: Any = self._hook.get_conn()
        writer.autocommit = True
        writer.row_factory = psycopg.rows.tuple_row
        parameters = {"kind": self.kind, "is_on": root is not None, "step": STEP}
        writer.execute(MARK, parameters)
        if root is None:
            self.log.info("ANALYTICS_ARCHIVE_URI is not set: rows are deleted without being archived")
            return []
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise AirflowFailException("ANALYTICS_ARCHIVE_URI needs the package pyarrow: install it.") from None
        # One at a time: a second one would take this one's files for leftovers.
        writer.execute("SELECT pg_advisory_lock(hashtextextended('web_analytics.archive', 0))")
        reader: Any = self._hook.get_conn()
        reader.autocommit = True
        try:
            archive = Archive(root, describe(writer, self.kind), reader, writer)
            archive.remove_leftovers()
            files = rows = 0
            for (numbers,) in writer.execute(STEPS, parameters).fetchall():
                if self.killed:
                    raise AirflowException("The task was killed between two steps.")
                step_files, step_rows = archive.run_step(numbers)
                files, rows = files + step_files, rows + step_rows
                self.log.info("[Analytics Archive] Wrote %s file(s) of %s %s(s)", step_files, step_rows, self.kind)
        finally:
            reader.close()
            writer.close()
        self.log.info("[Analytics Archive] ✅ Wrote and verified %s file(s) of %s %s(s)", files, rows, self.kind)
        for problem in archive.problems:
            self.log.error("[Analytics Archive] Not archived, and kept: %s", problem)
        ti: Any = context["ti"]
        if archive.problems and ti.try_number <= ti.max_tries:
            raise AirflowException(f"{len(archive.problems)} file(s) are not right, such as {archive.problems[0]}")
        return archive.problems
