-- The archive: rows are written to files before they go.

ALTER TABLE analytics_purge_batch ADD COLUMN archived bigint[];

COMMENT ON COLUMN analytics_purge_batch.archived IS
'With an archive: analytics_row_hash of each of ids, then of deleted_ids, as a file has it; NULL, or none, where no file
has it. NULL as a whole: there is no archive.';

CREATE TABLE analytics_archive_file (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('event', 'session')),
    website_id text NOT NULL,
    date date NOT NULL,
    uri text NOT NULL,
    rows bigint,
    content_hash bigint,
    bytes bigint,
    verified_at timestamptz
);

-- The id of a website may be longer than a B-tree takes.
CREATE INDEX analytics_archive_file_website_idx ON analytics_archive_file USING hash (website_id);
CREATE INDEX analytics_archive_file_unverified_idx ON analytics_archive_file (kind) WHERE verified_at IS NULL;

COMMENT ON TABLE analytics_archive_file IS
'The files of the archive. Of a row that is in several, as where it was changed, the newest file counts.';
COMMENT ON COLUMN analytics_archive_file.kind IS 'Whether its rows are of analytics_event or of analytics_session.';
COMMENT ON COLUMN analytics_archive_file.date IS
'The day of the events, or of the last activity of the sessions. Infinite where that is.';
COMMENT ON COLUMN analytics_archive_file.content_hash IS 'The exclusive or of analytics_row_hash of its rows.';
COMMENT ON COLUMN analytics_archive_file.verified_at IS
'When the file was read back and found right. NULL: it is being written, or was left behind.';
