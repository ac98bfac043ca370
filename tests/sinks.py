"""Where messages and metrics arrive in the tests: a real SMTP server, and HTTP servers in the place of Slack and of an
OpenTelemetry collector."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from embedded import free_port

ADDRESS = "oncall@example.org"
SECRET = "secret"
"""What must not be in a log."""
GAUGES = ("rows_read", "rows_written", "rows_deleted", "batches", "database_bytes", "error_rate")
METRICS = ("run_duration", *GAUGES, "run_success", "run_failed")
"""The metrics of a run, in the order in which they are sent, without the common start of their names."""


def metrics_of(row: Mapping[str, Any], error_rate: float) -> dict[str, float]:
    """What should arrive about a run, by name: `row` is its row in the ledger."""
    milliseconds = (row["finished_at"] - row["started_at"]).total_seconds() * 1000
    gauges = dict(row) | {"error_rate": error_rate}
    return {"run_duration": milliseconds} | {name: gauges[name] for name in GAUGES} | {f"run_{row['outcome']}": 1}


class MailBox:
    """Keeps the mails that an SMTP server receives."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Accept one mail."""
        self.mails.append(BytesParser(EmailMessage, policy=default).parsebytes(envelope.content))
        return "250 OK"


def text_of(mail: EmailMessage) -> str:
    """The text of a mail."""
    body = mail.get_body()
    assert isinstance(body, EmailMessage)
    return unescape(str(body.get_content()).replace("<br>", "\n"))


@contextmanager
def mail_server() -> Iterator[tuple[list[EmailMessage], str]]:
    """A mail server: the mails it got, and the connection that leads to it."""
    box = MailBox()
    controller = Controller(box, hostname="127.0.0.1", port=free_port())
    controller.start()
    extra = {"disable_ssl": True, "disable_tls": True, "from_email": "airflow@example.org"}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": controller.port, "extra": extra}
    yield box.mails, json.dumps(connection)
    controller.stop()


@contextmanager
def http_server(take: Callable[[bytes], None], answer: bytes = b"") -> Iterator[str]:
    """A server that gives the body of each POST to `take`: its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def slack_server() -> Iterator[tuple[list[dict[str, Any]], str]]:
    """A server that takes Slack's messages: those it got, and the connection that leads to it."""
    messages: list[dict[str, Any]] = []
    with http_server(lambda body: messages.append(json.loads(body)), b"ok") as url:
        connection = {"conn_type": "slackwebhook", "host": f"{url}/services", "password": f"T0/B0/{SECRET}"}
        yield messages, json.dumps(connection)


@contextmanager
def otlp_server() -> Iterator[tuple[list[ExportMetricsServiceRequest], str]]:
    """A server that takes OpenTelemetry's metrics by OTLP over HTTP: the requests it got, and its address."""
    requests: list[ExportMetricsServiceRequest] = []
    with http_server(lambda body: requests.append(ExportMetricsServiceRequest.FromString(body))) as url:
        yield requests, url
