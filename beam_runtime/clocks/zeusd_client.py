"""One zeusd, asked by HTTP over its Unix socket or over TCP, without waiting for ever.

Endpoints and answers are those of zeus 0.16's own client. Authentication is a token,
$ZEUSD_TOKEN, the same for every daemon; over TCP it travels as plain text, as everything does.
"""

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from beam_runtime.errors import ClockError, ClockPermissionError
from beam_runtime.printable import one_line

# How long a daemon may be silent. A set takes 7-35 ms in the driver, and 200 ms were seen; three
# tries (set, give back, give back once more) fit into the guard's patience of 5 s.
TIMEOUT_S = 1.5
_FORBIDDEN = (401, 403)
_LONGEST_ANSWER = 1 << 16
# What is left for an answer that is waiting already when the time is over.
_LEAST_S = 0.01


class ZeusdClient:
    """Asks one daemon.

    Args:
        place: path of its socket, or HOST:PORT.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._found: list[tuple[socket.AddressFamily, Any]] = []
        # Now, while all is well: a name server that is down must not keep a GPU locked.
        with contextlib.suppress(OSError, ValueError):
            self._addresses()

    def get(self, path: str, **query: str) -> Any:
        """What it answers, out of JSON. Raises ClockError."""
        text = self.begin("GET", path, **query)()
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ClockError(
                f"zeusd at {self._place} answers {path} with something other than JSON",
                cause=one_line(text, 200),
                hint="is it a zeusd, and as new as zeus 0.16?",
            ) from error

    def begin(self, method: str, path: str, **query: str) -> Callable[[], str]:
        """Send a request; what is returned waits for its answer.

        Raises:
            ClockPermissionError: it refuses the token, or wants one; raised by the waiting.
            ClockError: it does not answer, or could not do it; raised by either.
        """
        until_s = time.monotonic() + TIMEOUT_S
        token = os.environ.get("ZEUSD_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            connection = _Connection(self._place, self._addresses, until_s)
            with contextlib.ExitStack() as if_it_fails:
                if_it_fails.callback(connection.close)
                connection.request(method, target, headers=headers)
                if_it_fails.pop_all()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._silent(error) from error
        return lambda: self._answer(connection, path, until_s)

    def _answer(self, connection: "_Connection", path: str, until_s: float) -> str:
        left_s = max(_LEAST_S, until_s - time.monotonic())
        # A timeout of the socket's bounds one wait; who sends a byte a second has no end.
        end = threading.Timer(left_s, _cut, (connection.sock,))
        end.daemon = True
        end.start()
        try:
            connection.sock.settimeout(left_s)
            with connection.getresponse() as answer:
                text = answer.read(_LONGEST_ANSWER).decode(errors="replace")
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise self._silent(error) from error
        finally:
            end.cancel()
            connection.close()
        if answer.status in _FORBIDDEN:
            raise ClockPermissionError(
                f"zeusd at {self._place} refuses {path}",
                cause=one_line(text),
                hint="set ZEUSD_TOKEN to a token for control that is still good",
            )
        if answer.status != 200:
            raise ClockError(
                f"zeusd at {self._place} could not do {path}",
                cause=f"HTTP {answer.status}: {one_line(text)}",
                hint="its log says more: journalctl -u zeusd",
            )
        return text

    def _silent(self, error: Exception) -> ClockError:
        return ClockError(
            f"zeusd does not answer at {self._place}",
            cause=str(error) or type(error).__name__,
            hint="is the daemon running? see systemctl status zeusd",
        )

    def _addresses(self) -> list[tuple[socket.AddressFamily, Any]]:
        if not self._found:
            if self._place.startswith("/"):
                self._found = [(socket.AF_UNIX, self._place)]
            else:
                host, _, port = self._place.rpartition(":")
                found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
                self._found = [(family, address) for family, _, _, _, address in found]
        return self._found


def _cut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


class _Connection(http.client.HTTPConnection):
    """To the first of some addresses that takes it."""

    def __init__(
        self,
        place: str,
        addresses: Callable[[], list[tuple[socket.AddressFamily, Any]]],
        until_s: float,
    ) -> None:
        super().__init__("localhost" if place.startswith("/") else place)
        self._addresses = addresses
        self._until_s = until_s

    def connect(self) -> None:
        failure: OSError | None = None
        for family, address in self._addresses():
            attempt = socket.socket(family, socket.SOCK_STREAM)
            attempt.settimeout(max(_LEAST_S, self._until_s - time.monotonic()))
            try:
                attempt.connect(address)
            except OSError as error:
                attempt.close()
                failure = error
            else:
                self.sock = attempt
                return
        raise failure or OSError("it has no address")
