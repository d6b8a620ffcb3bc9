"""Where a program has given SIGPIPE its default action, no write of BEAM's ends it."""

import subprocess
import sys
import textwrap

import pytest

# Somebody hangs up before he has his answer.
LOOKED_AT = """
    import signal, socket, threading
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    from beam_runtime.engines.vllm.http_server import ControlServer

    gone, answered = threading.Event(), threading.Event()

    class Control:
        def status(self):
            gone.wait()
            return {}

    class Server(ControlServer):
        def shutdown_request(self, request):
            super().shutdown_request(request)
            answered.set()

    server = Server(Control(), 0)
    server.start()
    for _ in range(3):
        gone.clear(), answered.clear()
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"GET /status HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        gone.set()
        answered.wait()
    print("serves on")
"""

# A daemon, a log's reader: whatever is written to on a thread of BEAM's.
WRITTEN_TO = """
    import os, signal
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    from beam_runtime.clocks.calls import within

    def write():
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"x")

    try:
        within(20.0, write)
    except BrokenPipeError:
        print("serves on")
"""

# The search's thread writes the decision log.
LOGGED_TO = """
    import os, signal, sys, tempfile, threading
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    from beam_runtime.control.controller import Controller
    from beam_runtime.control.decision_log import DecisionLog
    from beam_runtime.errors import TableError
    from beam_runtime.types import EngineLimits

    path = tempfile.mkdtemp() + "/log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = DecisionLog(path)
    with Controller(TableError("none"), EngineLimits(pp=1), log=log) as beam:
        os.close(reader)
        for number in range(3):
            beam.completion(f"r{number}", told={"tokens": 1})
        while not log.failure:
            pass
    print("serves on")
"""


@pytest.mark.parametrize("program", [LOOKED_AT, WRITTEN_TO, LOGGED_TO])
def test_a_reader_that_is_gone_ends_nothing(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "serves on\n"), done.stderr
