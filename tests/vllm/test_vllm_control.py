"""Status, metrics and control: no vLLM is needed for them."""

import contextlib
import http.client
import json
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.control.counts import Counts
from beam_runtime.control.orders import Orders
from beam_runtime.control.status import Status
from beam_runtime.engines.config import EmbeddedPolicy
from beam_runtime.engines.vllm import http_server, power
from beam_runtime.engines.vllm.control import Control
from beam_runtime.engines.vllm.embedded import Embedded
from beam_runtime.engines.vllm.http_server import ControlServer
from beam_runtime.engines.vllm.power import PowerReading, Wattmeter, open_wattmeter
from beam_runtime.engines.vllm.tally import Tally
from beam_runtime.errors import BeamError
from beam_runtime.testing.nvml import FakeNvml, fake_gpus
from beam_runtime.types import Correction, Knobs, Rules, Slo


class FakeController:
    orders = Orders(Knobs(1200, 256), Rules(), True, "a test's")
    status = Status(True, "", "none", Counts(decisions=7, search_ms=2.5), 0, 0, Correction())
    resumed = False
    is_open = True
    close = None
    asked = ""

    def resume(self) -> None:
        self.resumed = True

    def observe(self) -> None:
        self.asked = "observe"

    def steer(self) -> None:
        self.asked = "steer"

    def promise(self, slo: Slo) -> None:
        self.asked = f"{slo.ttft_ms:.0f} and {slo.tbt_ms:.0f} ms"


@dataclass
class FakeEmbedded:
    """What Control uses of an Embedded."""

    controller: FakeController = field(default_factory=FakeController)
    policy: EmbeddedPolicy = EmbeddedPolicy.STEER
    slo: Slo = field(default_factory=Slo)
    tally: Tally = field(default_factory=Tally)
    failure: str = ""
    log_failure: str = ""
    log: None = None
    about: dict[str, str] = field(default_factory=dict)
    steering: bool = True
    wattmeter: Wattmeter | None = None

    def obey(self, policy: EmbeddedPolicy) -> None:
        Embedded.obey(self, policy)  # type: ignore[arg-type]

    def promise(self, slo: Slo) -> None:
        Embedded.promise(self, slo)  # type: ignore[arg-type]

    @property
    def view(self) -> Any:
        return type("View", (), {"followed": {"r1": None}})


def test_changes_take_effect_whole_or_not_at_all() -> None:
    embedded = FakeEmbedded()
    control = Control(embedded)  # type: ignore[arg-type]
    assert control.change({"slo": {"tbt_ms": 50}})["slo"] == {"ttft_ms": 1000.0, "tbt_ms": 50.0}
    assert embedded.controller.asked == "1000 and 50 ms"
    assert control.change({"policy": "observe", "resume": True})["policy"] == "observe"
    assert embedded.controller.resumed
    for wish in ({}, [], {"polcy": "off"}, {"policy": "off"}, {"slo": 5}, {"slo": {"x": 1}}):
        with pytest.raises(BeamError):
            control.change(wish)
    with pytest.raises(BeamError, match="above 0"):
        control.change({"policy": "steer", "slo": {"ttft_ms": 0}})
    assert embedded.policy is EmbeddedPolicy.OBSERVE


def test_what_fails_at_the_end_keeps_no_clock() -> None:
    ended: list[str] = []

    def fails() -> None:
        raise OSError("the port is gone")

    beam = SimpleNamespace(
        _closing=[fails, lambda: ended.append("port")],
        _controller=SimpleNamespace(close=lambda: ended.append("clocks")),
    )
    Embedded.close(beam)  # type: ignore[arg-type]
    Embedded.close(beam)  # type: ignore[arg-type]
    assert ended == ["clocks", "port", "clocks"]


def test_without_a_thread_to_close_on_the_clocks_are_given_back_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    controller = FakeController()
    beam = SimpleNamespace(failure="", _controller=controller)
    Embedded.fail(beam, KeyError("a bug"))  # type: ignore[arg-type]
    assert beam.failure == "KeyError: 'a bug'"
    assert controller.asked == "observe"


def test_the_controller_hears_of_a_new_policy() -> None:
    embedded = FakeEmbedded()
    control = Control(embedded)  # type: ignore[arg-type]
    assert control.change({"policy": "observe"})["policy"] == "observe"
    assert embedded.controller.asked == "observe"
    assert control.change({"policy": "steer"})["policy"] == "steer"
    assert embedded.controller.asked == "steer"


def test_measured_power_is_the_counters_own() -> None:
    nvml, now_s = FakeNvml(fake_gpus(2)), [100.0]
    meter = Wattmeter(NvmlGpus([0, 1], nvml=nvml), now_s=lambda: now_s[0])
    assert meter.read() == PowerReading(0.0, None)
    now_s[0] += 2.0
    nvml.gpus[0].energy_mj += 300_000
    nvml.gpus[1].energy_mj += 500_000
    assert meter.read() == PowerReading(800.0, 400.0)
    now_s[0] += 0.2  # too soon for a mean
    nvml.gpus[0].energy_mj += 100_000
    assert meter.read() == PowerReading(900.0, 400.0)
    now_s[0] += 0.8
    nvml.gpus[1].energy_mj = 0  # the driver was loaded anew
    assert meter.read() == PowerReading(900.0, 100.0)
    text = metrics_of(FakeEmbedded(wattmeter=meter))
    assert "\nbeam_gpu_energy_j_total 900\n" in text
    nvml.fail("nvmlDeviceGetTotalEnergyConsumption", 15)  # the GPU fell off the bus
    assert "beam_gpu" not in metrics_of(FakeEmbedded(wattmeter=meter))


def test_a_driver_that_hangs_keeps_one_look_and_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(power, "_PATIENCE_S", 0.05)
    nvml, over, inside = FakeNvml(fake_gpus(1)), threading.Event(), threading.Event()
    meter = Wattmeter(NvmlGpus([0], nvml=nvml))

    def hang(gpu: object) -> None:
        inside.set()
        over.wait()

    nvml.on_energy = hang
    first = threading.Thread(target=meter.read, daemon=True)
    first.start()
    inside.wait()
    assert "beam_gpu" not in metrics_of(FakeEmbedded(wattmeter=meter))
    assert Control(FakeEmbedded(wattmeter=meter)).status()["measured"] == {  # type: ignore[arg-type]
        "energy_j": None,
        "power_w": None,
    }
    nvml.on_energy = None
    over.set()
    first.join()
    assert meter.read().energy_j == 0.0, "it answers again"


def test_without_named_gpus_there_is_no_power() -> None:
    assert open_wattmeter(()) is None
    assert "beam_gpu" not in metrics_of(FakeEmbedded())


def metrics_of(embedded: FakeEmbedded) -> str:
    return Control(embedded).metrics()  # type: ignore[arg-type]


@contextmanager
def served(embedded: FakeEmbedded, **more: Any) -> Iterator[ControlServer]:
    server = ControlServer(Control(embedded), 0, **more)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def ask(
    server: ControlServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any]:
    """(status, answer): JSON where it is."""
    wire = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    wire.request(method, path, body, headers)
    answer = wire.getresponse()
    text = answer.read()
    wire.close()
    plain = answer.headers["Content-Type"].startswith("text/plain")
    return answer.status, text.decode() if plain else json.loads(text)


WISH = b'{"slo": {"ttft_ms": 777}}'


def test_over_http() -> None:
    with served(FakeEmbedded()) as server:
        code, status = ask(server, "GET", "/status")
        assert (code, status["knobs"]["clock_mhz"]) == (200, 1200)
        assert "\nbeam_decisions_total 7\n" in ask(server, "GET", "/metrics")[1]
        assert ask(server, "POST", "/control", WISH)[1]["slo"]["ttft_ms"] == 777.0
        for body in (b"{", b'{"policy": "off"}', b"[1]", b"[" * 5000, b"1" * 70_000):
            code, answer = ask(server, "POST", "/control", body)
            assert code == 400
            assert len(answer["error"]) < 300
        assert ask(server, "POST", "/elsewhere", WISH)[0] == 404
        assert ask(server, "GET", "/elsewhere")[0] == 404
        with pytest.raises(BeamError, match="cannot be served"):
            ControlServer(Control(FakeEmbedded()), server.server_address[1])  # type: ignore[arg-type]


def test_health_is_beam_s_and_not_vllm_s() -> None:
    beam = FakeEmbedded()
    with served(beam) as server:
        assert ask(server, "GET", "/health")[0] == 200
        beam.failure = "ValueError: a hook"
        code, answer = ask(server, "GET", "/health")
        assert (code, answer["healthy"], answer["failure"]) == (503, False, "ValueError: a hook")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Host": "elsewhere.example"}, 403),
        ({"Origin": "http://elsewhere.example", "Host": "elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::"}, 403),
        ({"Host": "localhost:9464"}, 200),
        ({"Host": "[::1]:9464"}, 200),
    ],
)
def test_pages_of_other_origins_change_nothing(headers: dict[str, str], code: int) -> None:
    beam = FakeEmbedded()
    with served(beam) as server:
        assert ask(server, "POST", "/control", WISH, **headers)[0] == code
        looked = ask(server, "GET", "/status", **headers)[0]
        assert looked == (403 if "elsewhere" in headers.get("Host", "") else 200)
    assert (beam.slo.ttft_ms == 777.0) == (code == 200)


@pytest.mark.parametrize(
    ("given", "code"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "secret"}, 401),
     ({"Authorization": "Basic secret"}, 401), ({"Authorization": "Bearer secret"}, 200)],
)  # fmt: skip
def test_a_token_is_needed_for_changes_and_not_to_look(given: dict[str, str], code: int) -> None:
    beam = FakeEmbedded()
    with served(beam, token="secret") as server:
        assert ask(server, "POST", "/control", WISH, **given)[0] == code
        assert ask(server, "GET", "/metrics")[0] == 200
    assert (beam.slo.ttft_ms == 777.0) == (code == 200)


def test_on_other_interfaces_nothing_changes_without_a_token() -> None:
    with served(FakeEmbedded(), address="0.0.0.0") as server:
        assert ask(server, "POST", "/control", WISH)[0] == 401
        assert ask(server, "GET", "/metrics", Host="beam.monitoring:9464")[0] == 200
    with served(FakeEmbedded(), address="0.0.0.0", token="secret") as server:
        assert ask(server, "POST", "/control", WISH, Authorization="Bearer secret")[0] == 200


def test_who_says_nothing_is_hung_up_on_and_keeps_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "LONGEST_S", 0.2)
    with served(FakeEmbedded()) as server:
        address = server.server_address[1]
        silent = [socket.create_connection(("127.0.0.1", address), timeout=20) for _ in range(40)]
        for one in silent:  # some were refused at once, the others time out; all are closed
            one.settimeout(20)
            with contextlib.suppress(ConnectionError):
                assert one.recv(1) == b""
            one.close()
        assert ask(server, "GET", "/status")[0] == 200


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1e999", "1" + "0" * 400, "true", "[1]"])
def test_numbers_that_are_no_promise(value: str) -> None:
    beam = FakeEmbedded()
    before = beam.slo
    with pytest.raises(BeamError, match=r"slo\.ttft_ms must be milliseconds"):
        Control(beam).change({"slo": {"ttft_ms": json.loads(value)}})  # type: ignore[arg-type]
    assert beam.slo == before


def test_numbers_without_an_end_are_not_given_out() -> None:
    beam = FakeEmbedded()
    beam.tally.own_energy_j = math.inf
    beam.tally.ttft_ms = math.nan
    text = metrics_of(beam)
    assert "beam_own_energy_j_total" not in text
    assert "beam_ttft_compared_ms_sum" not in text
    assert "nan" not in text.lower()
    with served(beam) as server:
        assert ask(server, "GET", "/status")[1]["tally"]["own_energy_j"] is None


def test_why_it_does_not_steer_is_a_label_of_few_values() -> None:
    beam = FakeEmbedded(steering=False)
    beam.controller.status = Status(
        False, "clocks do not follow (off until asked): GPU 3 reads 1410", "", Counts(), 0, 0,
        Correction(),
    )  # fmt: skip
    assert 'beam_not_steering{reason="clocks do not follow"} 1' in metrics_of(beam)
    beam.policy = EmbeddedPolicy.OBSERVE
    assert 'beam_not_steering{reason="asked to observe"} 1' in metrics_of(beam)
    beam.failure = "KeyError: 'x'"
    assert 'beam_not_steering{reason="failed"} 1' in metrics_of(beam)
    assert "beam_not_steering" not in metrics_of(FakeEmbedded())


def test_a_log_that_failed_is_seen() -> None:
    beam = FakeEmbedded(log_failure="No space left on device")
    assert "\nbeam_log_failed 1\n" in metrics_of(beam)
    status = Control(beam).status()  # type: ignore[arg-type]
    assert status["log"]["failure"] == "No space left on device"
    assert "\nbeam_log_failed 0\n" in metrics_of(FakeEmbedded())


def test_labels_are_quoted() -> None:
    beam = FakeEmbedded(about={"table": 'a "b"\\c\nd'})
    assert 'table="a \\"b\\"\\\\c\\nd"' in metrics_of(beam)


def test_a_host_that_is_none_is_answered_and_refused() -> None:
    with served(FakeEmbedded()) as server:
        for method, path in (("GET", "/status"), ("POST", "/control")):
            assert ask(server, method, path, WISH, Host="[::")[0] == 403


@pytest.mark.parametrize("path", ["/status?x=1", "/metrics?name=a&name=b", "/health?"])
def test_parameters_of_a_scraper_or_a_probe_are_passed_over(path: str) -> None:
    with served(FakeEmbedded()) as server:
        assert ask(server, "GET", path)[0] == 200


def test_a_probe_may_ask_for_the_head_alone() -> None:
    with served(FakeEmbedded()) as server:
        wire = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        for path, code in (("/health", 200), ("/metrics", 200), ("/nothing", 404)):
            wire.request("HEAD", path)
            answer = wire.getresponse()
            assert (answer.status, answer.read()) == (code, b"")
            wire.close()


def test_a_token_may_have_any_letters() -> None:
    sent = "Bearer g\u00fcltig\u20ac".encode().decode("latin-1")  # the bytes that curl sends
    with served(FakeEmbedded(), token="g\u00fcltig\u20ac") as server:
        assert ask(server, "POST", "/control", WISH, Authorization=sent)[0] == 200
        assert ask(server, "POST", "/control", WISH, Authorization="Bearer g\u00fcltig")[0] == 401


@pytest.mark.parametrize("odd", ["false", 1, [True]])
def test_to_resume_is_true_or_false(odd: object) -> None:
    beam = FakeEmbedded()
    with pytest.raises(BeamError, match="true or false"):
        Control(beam).change({"resume": odd})  # type: ignore[arg-type]
    assert not beam.controller.resumed
