"""The settings of a session that decide what a statement means and returns, whatever the database or the role says."""

import json
from collections.abc import Mapping
from typing import Any

SETTINGS: dict[str, str] = {
    # The text of a value, and what a text is read as.
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    # AT TIME ZONE takes an abbreviation before a zone of the same name, and EST is not everywhere New York's.
    "timezone_abbreviations": "Default",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_numeric": "C",
    "lc_time": "C",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    # What a query returns.
    "transform_null_equals": "off",
    "array_nulls": "on",
    # Counting only the rows that a policy lets through would be a wrong count: fail instead.
    "row_security": "off",
    "restrict_nonsystem_relation_kind": "",
    # What a transaction sees, may do and leaves behind: what the next one builds on must survive a crash of the server.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "synchronous_commit": "on",
    # An error that is caught must not end the session, nor should any limit but the task's own.
    "exit_on_error": "off",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
    # Compiling costs more than it saves, for estimated costs are far above the real ones where indexes are jumped through.
    "jit": "off",
}


def apply(connection: Any, settings: Mapping[str, str]) -> None:
    """Set settings of a session, but not those that the server's version does not know.

    :param connection: a psycopg connection, outside a transaction.
    :param settings: setting to value.
    """
    connection.execute(
        "SELECT set_config(name, value, false) FROM json_each_text(%s::json) AS setting (name, value)"
        " WHERE current_setting(name, true) IS NOT NULL",
        [json.dumps(settings)],
    )
    connection.commit()
