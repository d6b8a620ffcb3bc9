"""The port at which BEAM is looked at and told: small, and careful with whoever calls.

    GET  /status    what it does and why, as JSON
    GET  /metrics   the same for Prometheus
    GET  /health    200 while BEAM is at work, 503 where it has failed and vLLM goes on alone
    POST /control   {"policy": "observe"}, {"slo": {"ttft_ms": 800}}, {"resume": true}

Whoever changes something needs the token, where there is one; without one only this machine's
programs may, on the loopback interface. A page of another origin may not even there, whatever name
it has for this host. One request a connection, a few connections, a few seconds each.
"""

import hmac
import json
import socket
import threading
import time
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from beam_runtime.clocks.broken_pipes import broken_pipes_raise
from beam_runtime.control.decision_log import finite
from beam_runtime.errors import BeamError

if TYPE_CHECKING:
    from beam_runtime.engines.vllm.control import Control

LOOPBACK = "127.0.0.1"
LONGEST_BODY_BYTES = 64 * 1024
MOST_CONNECTIONS = 16
# From its first byte to the last of the answer.
LONGEST_S = 5.0


class ControlServer(ThreadingHTTPServer):
    """Answers until shutdown() and server_close().

    Args:
        control: what is asked.
        port: 0 = any free one.
        address: where it listens.
        token: needed for changes; empty = there is none.

    Raises:
        BeamError: the port is taken, or the address is not this machine's.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, control: "Control", port: int, address: str = LOOPBACK, token: str = ""
    ) -> None:
        self.control = control
        self.token = token
        self.loopback = _is_loopback(address)
        self._begun_s: dict[socket.socket, float] = {}
        self._counting = threading.Lock()
        if ":" in address:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise BeamError(
                f"BEAM's metrics cannot be served on {address}:{port}",
                cause=error.strerror or str(error),
                hint="name another metrics_port or metrics_address",
            ) from error

    def start(self) -> None:
        """Answer from now on, on a thread of its own."""
        threading.Thread(target=self._serve, name="beam-metrics", daemon=True).start()

    def _serve(self) -> None:
        broken_pipes_raise()  # in its threads, too: whoever asks may hang up
        self.serve_forever()

    def process_request(self, request: Any, client_address: Any) -> None:
        """One connection more, if there is room."""
        with self._counting:
            full = len(self._begun_s) >= MOST_CONNECTIONS
            if not full:
                self._begun_s[request] = time.monotonic()
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """One less."""
        with self._counting:
            self._begun_s.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: whoever takes too long, to ask or to hear, is hung up on."""
        now_s = time.monotonic()
        with self._counting:
            slow = [one for one, begun_s in self._begun_s.items() if now_s - begun_s > LONGEST_S]
            for one in slow:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:  # gone meanwhile
                    continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no line in vLLM's log."""


class _Handler(BaseHTTPRequestHandler):
    server: ControlServer
    timeout = LONGEST_S

    def do_GET(self) -> None:
        control = self.server.control
        if not self._is_for_here():
            self._refuse(403, "asked for under another host's name")
        elif self._asked == "/status":
            self._answer(200, control.status())
        elif self._asked == "/metrics":
            self._send(200, control.metrics(), "text/plain; version=0.0.4")
        elif self._asked == "/health":
            health = control.health()
            self._answer(200 if health["healthy"] else 503, health)
        else:
            self._refuse(404, "there are /status, /metrics, /health and /control")

    def do_HEAD(self) -> None:
        """As GET, of which _send() leaves the body out: probes ask so."""
        self.do_GET()

    @property
    def _asked(self) -> str:
        """The path, whatever parameters a scraper or a probe adds."""
        return self.path.partition("?")[0]

    def do_POST(self) -> None:
        if not (self._is_for_here() and _same_origin(self.headers)):
            self._refuse(403, "asked for by a page of another origin or host")
        elif self._asked != "/control":
            self._refuse(404, "POST goes to /control")
        elif why := self._stranger():
            self._refuse(401, why)
        else:
            self._change()

    def _change(self) -> None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= LONGEST_BODY_BYTES:
                raise BeamError(f"a JSON object of up to {LONGEST_BODY_BYTES} bytes is expected")
            answer = self.server.control.change(json.loads(self.rfile.read(length)))
        except (BeamError, ValueError, RecursionError) as error:
            self._refuse(400, str(error))
        else:
            self._answer(200, answer)

    def _is_for_here(self) -> bool:
        """On the loopback interface nobody has another name for this machine but a lure."""
        if not self.server.loopback:
            return True
        return _is_loopback(_host(f"//{self.headers.get('Host', '')}"))

    def _stranger(self) -> str:
        """Why this caller may change nothing; empty where it may."""
        token = self.server.token
        if not token:
            return "" if self.server.loopback else "no token is configured: changes are refused"
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        # http.server reads headers as latin-1, of which the bytes are those that were sent.
        known = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
        return "" if known and kind.lower() == "bearer" else "Authorization: Bearer TOKEN is needed"

    def _answer(self, code: int, value: Any) -> None:
        self._send(code, json.dumps(finite(value), allow_nan=False), "application/json")

    def _refuse(self, code: int, why: str) -> None:
        self._answer(code, {"error": why})

    def _send(self, code: int, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """No version of anything."""
        return "BEAM"

    def log_message(self, *_: Any) -> None:
        """Not a line per scrape."""


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _host(url: str) -> str:
    """The host that a URL names; empty where it is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _same_origin(headers: Message) -> bool:
    """Whether no browser's page elsewhere sent this: any page may post to a port it can reach."""
    origin = headers.get("Origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("Host", "")
    except ValueError:  # it is no URL
        return False
