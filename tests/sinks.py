"""Where messages arrive in the tests: a real SMTP server, and an HTTP server in Slack's place."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller

from embedded import free_port

ADDRESS = "oncall@example.org"
SECRET = "secret"
"""What must not be in a log."""


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
def slack_server() -> Iterator[tuple[list[dict[str, Any]], str]]:
    """A server that takes Slack's messages: those it got, and the connection that leads to it."""
    messages: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    url = f"http://127.0.0.1:{server.server_port}/services"
    yield messages, json.dumps({"conn_type": "slackwebhook", "host": url, "password": f"T0/B0/{SECRET}"})
    server.shutdown()
    server.server_close()
