"""Readers and hooks of the runtime half: what an engine, a daemon, a browser or a crash gives it.

Each function here prepares in a folder and returns what takes in one damaged input.
"""

import json
import math
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzzing.damage import ODD, damaged
from fuzzing.promise import must_not_raise
from fuzzing.tables import damaged_table, sample_table

Read = Callable[[random.Random], object]

CONFIG = """table = "70b.parquet"
policy = "steer"
log = "decisions.jsonl"
metrics_port = 8011
metrics_address = "127.0.0.1"
token_file = "token"

[slo]
ttft_ms = 1000
tbt_ms = 200
tbt_share = 0.99
answer_tokens = 100

[slo.batch]
ttft_ms = 5000
e2e_ms = 60000

[clock]
gpus = [0, "GPU-1"]
idle_power_w = 90
nodes = { "10.0.0.2:4938" = [0, 1] }
"""
RECORD = {"version": 1, "generation": 3, "holdings": [
    {"owner": {"pid": 4242, "started_ticks": 17, "boot_id": "b", "namespace": 1, "host": "h"},
     "gpus": ["GPU-0", "GPU-1"], "clock_mhz": 960, "actuator": "nvml", "generation": 2,
     "before_mhz": 735, "confirmed": True}]}  # fmt: skip
DISCOVER = {"gpus": [{"id": 0, "name": "A100", "pci_address": "0000:10:00.0"},
                     {"id": 1, "name": "A100", "pci_address": "0000:11:00.0"}],
            "cpus": [], "enabled_api_groups": ["gpu-control"], "auth_required": True}  # fmt: skip
WHOAMI = {"sub": "beam", "scopes": ["gpu-control"]}
CONTROL = [b'{"policy": "observe"}', b'{"slo": {"ttft_ms": 800, "tbt_ms": 100}}',
           b'{"resume": true}', b'{"slo": {"e2e_ms": 60000}, "policy": "steer"}']  # fmt: skip


def tables(folder: Path) -> Read:
    """A table, and the step costs that are made of it."""
    from beam_runtime.table.perf_table import PerfTable
    from beam_runtime.table.step_cost import StepCost

    path = folder / "table.parquet"
    spoil = damaged_table(sample_table(folder))

    def once(moments: random.Random) -> object:
        path.write_bytes(spoil(moments))
        return StepCost.from_table(PerfTable.load(path))

    return once


def from_table(folder: Path) -> Read:
    """A controller from any file: it never raises."""
    from beam_runtime.control.controller import Controller
    from beam_runtime.types import EngineLimits

    path = folder / "table.parquet"
    spoil = damaged_table(sample_table(folder))
    limits = EngineLimits(pp=4)

    def once(moments: random.Random) -> object:
        path.write_bytes(spoil(moments))
        controller = Controller.from_table(path, limits)  # threads begin with `with` only
        return must_not_raise(lambda: controller.status.reason)

    return lambda moments: must_not_raise(lambda: once(moments))


def records(folder: Path) -> Read:
    """The state file, and what doctor makes of it."""
    from beam_runtime.clocks.state_file import StateFile

    state = StateFile(folder / "state")
    state.folder.mkdir(mode=0o700, exist_ok=True)
    whole = json.dumps(RECORD).encode()

    def once(moments: random.Random) -> object:
        state.path.write_bytes(damaged(whole, moments))
        return [holding.owner.alive() for holding in state.read()]

    return once


def guards_messages(folder: Path) -> Read:
    """What the guard is told, through its pipe; it survives whatever it is."""
    from beam_runtime.clocks.holding import parse_holding
    from beam_runtime.clocks.memory import Memory

    lease = parse_holding(RECORD["holdings"][0])  # type: ignore[index]
    messages = [
        b"set 960",
        b"call",
        b"answered",
        b"moved",
        b"returned",
        b"confirmed",
        b"free",
        b"quit",
        b".",
    ]

    def once(moments: random.Random) -> None:
        memory = Memory(lease)
        for _ in range(3):
            line = damaged(moments.choice(messages), moments).decode(errors="replace")
            memory.take_in(line)

    return lambda moments: must_not_raise(lambda: once(moments))


def decision_logs(folder: Path) -> Read:
    """A decision log, line by line, and going on where it was cut."""
    from beam_runtime.control.decision_log import SCHEMA, DecisionLog, read_log

    path = folder / "decisions.jsonl"
    log = DecisionLog(path)
    log.write("start", 1.0, schema=SCHEMA, clocks="x")
    for n in range(3):
        log.write("decision", float(n), knobs={"clock_mhz": 735}, why="x" * n)
    log.close()
    whole = path.read_bytes()

    def once(moments: random.Random) -> object:
        path.write_bytes(damaged(whole, moments))
        if moments.random() < 0.2:
            again = DecisionLog(path, max_bytes=2000)
            again.write("decision", moments.choice(ODD), odd=moments.choice(ODD))
            again.close()
        return list(read_log(path))

    return once


def configs(folder: Path) -> Read:
    """The TOML file that vLLM's processes read."""
    from beam_runtime.engines.config import EmbeddedConfig

    path, whole = folder / "beam.toml", CONFIG.encode()

    def once(moments: random.Random) -> object:
        path.write_bytes(damaged(whole, moments))
        return EmbeddedConfig.load(path)

    return once


def zeusd_replies(folder: Path) -> Read:
    """A daemon's answers: any bytes, over a socket."""
    from beam_runtime.clocks.gpu_identity import GpuIdentity
    from beam_runtime.clocks.zeusd_client import ZeusdClient
    from beam_runtime.clocks.zeusd_offer import ask_offer, ask_scopes

    place = str(folder / "zeusd.sock")
    answers: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(16)

    def serve() -> None:
        while True:
            connected, _ = listener.accept()
            with connected:
                try:
                    connected.recv(4096)
                    connected.sendall(answers[0])
                    connected.shutdown(socket.SHUT_WR)
                except OSError:
                    continue

    threading.Thread(target=serve, daemon=True).start()
    client = ZeusdClient(place)
    own = [GpuIdentity(0, "GPU-0", "A100", "0000:10:00.0")]

    def answer(content: object) -> bytes:
        body = json.dumps(content).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def body_only(content: object, moments: random.Random) -> bytes:
        return b"HTTP/1.0 200 OK\r\n\r\n" + damaged(json.dumps(content).encode(), moments)

    def once(moments: random.Random) -> object:
        offer = moments.random() < 0.7
        content = DISCOVER if offer else WHOAMI
        whole = moments.random() < 0.3
        answers[:] = [damaged(answer(content), moments) if whole else body_only(content, moments)]
        if not offer:
            return ask_scopes(client, place)
        return ask_offer(client, place).indices_of(own, 2, place)

    return once


def control_requests(folder: Path) -> Read:
    """POST /control and GET /status over HTTP: an answer of 2xx or 4xx, and a sane promise."""
    from beam_runtime.engines.vllm.control import Control
    from beam_runtime.engines.vllm.http_server import ControlServer
    from beam_runtime.types import Slo

    class Engine:
        def __init__(self) -> None:
            self.slo, self.policy, self.controller = Slo(), "observe", self

        def promise(self, slo: Slo) -> None:
            self.slo = slo

        def obey(self, policy: object) -> None:
            self.policy = str(policy)

        def resume(self) -> None:
            pass

    engine = Engine()
    control = Control(engine)  # type: ignore[arg-type]
    control.status = lambda: {"slo": asdict(engine.slo)}  # type: ignore[method-assign]
    server = ControlServer(control, 0)
    raised: list[BaseException] = []

    def remember(request: Any, address: Any) -> None:
        import sys

        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            raised.append(error)

    server.handle_error = remember  # type: ignore[method-assign]
    server.start()
    address = server.server_address[:2]

    def exchanged(request: bytes) -> bytes:
        with socket.create_connection(address, timeout=5) as connected:
            connected.sendall(request)
            connected.shutdown(socket.SHUT_WR)
            said = b""
            while part := connected.recv(65536):
                said += part
            return said

    def once(moments: random.Random) -> None:
        body = damaged(moments.choice(CONTROL), moments)[:70_000]
        request = (
            b"POST /control HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        if moments.random() < 0.3:
            request = damaged(request, moments)[:70_000]
        raised.clear()
        try:
            said = exchanged(request)
        except OSError:
            return  # hung up on, in the middle of nonsense
        if raised:
            raise raised[0]
        status = said.split(b" ", 2)[1:2]
        if said[:5] == b"HTTP/" and status and not (status[0][:1] in b"24" or status[0] == b"501"):
            raise AssertionError(f"answered {said[:40]!r}")
        times = [time for name, time in asdict(engine.slo).items() if name.endswith("_ms")]
        if not all(time is None or 0.0 < time < math.inf for time in times):
            raise AssertionError(f"promised {engine.slo}")

    return once
