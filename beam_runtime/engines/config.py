"""What an embedded BEAM is told: a small TOML file, named by BEAM_CONFIG.

    table = "llama3-70b-tp2-pp4.parquet"   # beside this file, or an absolute path
    policy = "observe"                     # off | observe (default) | steer
    log = "decisions.jsonl"
    metrics_port = 9464                    # /metrics, /status, /health, /control
    metrics_address = "127.0.0.1"          # where they are served
    token_file = "token"                   # needed for /control; BEAM_TOKEN goes before it

    [slo]                                  # what every request is promised
    ttft_ms = 1000
    tbt_ms = 200
    max_slowdown = 1.5                     # limits on saving: at most so much slower than the
    least_tokens_per_s = 8                 # fastest setting, and at least so fast a stream

    [slo.batch]                            # a class of its own, named by requests
    ttft_ms = 10000
    tbt_ms = 500

    [clock]                                # nothing here: the other knobs still turn
    gpus = ["GPU-...", "GPU-..."]          # all GPUs of the replica, by UUID or NVML index
    idle_power_w = 160                     # of one stage's GPUs, where the table lacks it

    [clock.nodes]                          # those on other nodes, by the zeusd there and index
    "node2:4938" = [0, 1, 2, 3]

The environment's BEAM_POLICY goes before the file's policy: an operator can look first.
Unknown keys are refused; a mistyped SLO must not become the default one.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from beam_runtime.clocks.gpu_identity import nvml_index
from beam_runtime.clocks.places import on_node
from beam_runtime.engines import toml
from beam_runtime.engines.small_file import read_small
from beam_runtime.errors import BeamError
from beam_runtime.types import Slo

_ADDRESS = re.compile(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
CONFIG_VARIABLE = "BEAM_CONFIG"
POLICY_VARIABLE = "BEAM_POLICY"
TOKEN_VARIABLE = "BEAM_TOKEN"
_LARGEST_FILE_BYTES = 1 << 20
_LONGEST_TOKEN_BYTES = 1 << 16


_FIELDS = (
    "table", "policy", "log", "slo", "clock", "metrics_port", "metrics_address", "token_file",
)  # fmt: skip


class EmbeddedPolicy(StrEnum):
    """How far BEAM may go."""

    OFF = "off"
    OBSERVE = "observe"
    STEER = "steer"


@dataclass(frozen=True, slots=True)
class EmbeddedConfig:
    """The file, checked.

    Attributes:
        table: the perf-energy table; None = none was named.
        policy: how far BEAM may go.
        log: decision log; None = none is kept.
        slo: for requests that name no class.
        classes: SLOs by class name.
        gpus: the replica's, by UUID or NVML index; those of other nodes as clocks.places names
            them.
        idle_power_w: what a waiting stage's GPUs draw together, where the table lacks it.
        metrics_port: where Prometheus metrics are served; None = nowhere.
        metrics_address: on which interface.
        token_file: holds what whoever changes something must know.
    """

    table: Path | None = None
    policy: EmbeddedPolicy = EmbeddedPolicy.OBSERVE
    log: Path | None = None
    slo: Slo = field(default_factory=Slo)
    classes: Mapping[str, Slo] = field(default_factory=dict)
    gpus: tuple[str | int, ...] = ()
    idle_power_w: float | None = None
    metrics_port: int | None = None
    metrics_address: str = "127.0.0.1"
    token_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "EmbeddedConfig":
        """The file that BEAM_CONFIG names, with BEAM_POLICY on top.

        Raises:
            BeamError: no such variable or file, no TOML, or a field that is not understood.
        """
        named = environment.get(CONFIG_VARIABLE)
        if not named:
            raise BeamError(
                f"{CONFIG_VARIABLE} is not set",
                hint=f"export {CONFIG_VARIABLE}=/path/to/beam.toml; docs/vllm.md shows one",
            )
        return cls.load(Path(named), environment.get(POLICY_VARIABLE))

    def read_token(self, environment: Mapping[str, str] = os.environ) -> str:
        """What whoever changes something must know; empty = nothing.

        Raises:
            BeamError: the file cannot be read, or holds nothing.
        """
        token = environment.get(TOKEN_VARIABLE, "")
        if not token and self.token_file is not None:
            try:
                token = read_small(self.token_file, _LONGEST_TOKEN_BYTES).strip()
            except (OSError, ValueError) as error:
                raise BeamError(f"cannot read {self.token_file}", cause=str(error)) from error
            if not token:
                raise BeamError(f"{self.token_file} holds no token", hint="one line of text")
        return token

    @classmethod
    def load(cls, path: Path, policy: str | None = None) -> "EmbeddedConfig":
        """Read a file; ``policy`` replaces the file's own. Raises BeamError."""
        try:
            raw = toml.loads(read_small(path, _LARGEST_FILE_BYTES).removeprefix("\ufeff"))
        except (OSError, ValueError) as error:
            raise BeamError(
                f"cannot read the configuration {path}",
                cause=getattr(error, "strerror", None) or str(error),
                hint="docs/vllm.md shows one",
            ) from error
        if policy:
            if policy not in list(EmbeddedPolicy):
                raise BeamError(
                    f"{POLICY_VARIABLE} must be {' or '.join(EmbeddedPolicy)}, "
                    f"found {_shown(policy)}",
                    hint=f"export {POLICY_VARIABLE}=observe, or unset it: the file's policy counts",
                )
            raw["policy"] = policy
        return _Reader(path).config(raw)


def _shown(found: object) -> str:
    """What was found, not all of it where it is long; a huge integer has no decimal digits."""
    try:
        text = repr(found)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def positive(value: object) -> float | None:
    """A number above 0 that a float can hold; None for anything else that JSON or TOML allows."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0.0 < number < math.inf else None


def _names_a_gpu(value: object) -> bool:
    if isinstance(value, str):  # digits alone are an index, which is a number
        return bool(value) and not value.isdecimal()
    try:
        nvml_index(value)
    except BeamError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Reader:
    """Checks one file; every message names it."""

    path: Path

    def config(self, raw: dict[str, Any]) -> EmbeddedConfig:
        self._known(raw, "", _FIELDS)
        slo = self._table(raw, "slo")
        classes = {name: value for name, value in slo.items() if isinstance(value, dict)}
        own = {name: value for name, value in slo.items() if name not in classes}
        default = self._slo(own, "slo", Slo())
        if "default" in classes:
            raise BeamError(
                f"{self.path}: [slo.default] is no class",
                cause="the default is [slo]: what requests are promised that name no class",
                hint="move its fields into [slo], or give the class another name",
            )
        clock = self._table(raw, "clock")
        self._known(clock, "clock.", ("gpus", "idle_power_w", "nodes"))
        return EmbeddedConfig(
            table=self._file(raw, "table"),
            policy=self._policy(raw),
            log=self._file(raw, "log"),
            slo=default,
            classes={
                name: self._slo(value, f"slo.{name}", default) for name, value in classes.items()
            },
            gpus=self._gpus(clock) + self._gpus_on_nodes(clock),
            idle_power_w=self._positive(clock, "idle_power_w", "clock.idle_power_w", "watts"),
            metrics_port=self._port(raw),
            metrics_address=self._address(raw),
            token_file=self._file(raw, "token_file"),
        )

    def _refuse(self, key: str, expected: str, found: object) -> BeamError:
        return BeamError(
            f"{self.path}: {key} must be {expected}, found {_shown(found)}",
            hint="docs/vllm.md lists every field",
        )

    def _known(self, raw: dict[str, Any], prefix: str, names: tuple[str, ...]) -> None:
        for key in raw:
            if key not in names:
                raise BeamError(
                    f"{self.path}: there is no field {prefix}{key}",
                    hint=f"expected {', '.join(prefix + name for name in names)}",
                )

    def _table(self, raw: dict[str, Any], key: str) -> dict[str, Any]:
        value = raw.get(key, {})
        if not isinstance(value, dict):
            raise self._refuse(key, f"a table: [{key}]", value)
        return value

    def _file(self, raw: dict[str, Any], key: str) -> Path | None:
        value = raw.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise self._refuse(key, "a file's name", value)
        return (self.path.parent / value).absolute()

    def _policy(self, raw: dict[str, Any]) -> EmbeddedPolicy:
        value = raw.get("policy", EmbeddedPolicy.OBSERVE)
        if value not in list(EmbeddedPolicy):
            raise self._refuse("policy", " or ".join(EmbeddedPolicy), value)
        return EmbeddedPolicy(value)

    def _slo(self, raw: dict[str, Any], key: str, default: Slo) -> Slo:
        times = ("ttft_ms", "tbt_ms", "tpot_ms", "e2e_ms")
        limits = ("least_tokens_per_s", "max_slowdown")
        self._known(raw, f"{key}.", (*times, "tbt_share", "answer_tokens", *limits))
        streaming = [name for name in times[1:] if name in raw]
        if len(streaming) > 1:
            raise self._refuse(key, "one kind of streaming", " and ".join(streaming))
        ms = {name: self._positive(raw, name, f"{key}.{name}", "milliseconds") for name in times}
        share = self._positive(raw, "tbt_share", f"{key}.tbt_share", "a share")
        if share is not None and share > 1.0:
            raise self._refuse(f"{key}.tbt_share", "a share above 0 and at most 1", share)
        tokens = raw.get("answer_tokens")
        if tokens is not None and (type(tokens) is not int or tokens < 1):
            raise self._refuse(f"{key}.answer_tokens", "1 token or more", tokens)
        floor = self._positive(raw, limits[0], f"{key}.{limits[0]}", "tokens per second")
        slowdown = self._positive(raw, limits[1], f"{key}.{limits[1]}", "a factor")
        if slowdown is not None and slowdown < 1.0:
            raise self._refuse(f"{key}.max_slowdown", "a factor of 1 or more", slowdown)
        try:
            return default.revised(
                **ms,
                tbt_share=share,
                answer_tokens=tokens,
                least_tokens_per_s=floor,
                max_slowdown=slowdown,
            )
        except ValueError as error:
            raise BeamError(f"{self.path}: {key}: {error}") from None

    def _positive(self, raw: dict[str, Any], name: str, key: str, unit: str) -> float | None:
        value = raw.get(name)
        if value is None:
            return None
        number = positive(value)
        if number is None:
            raise self._refuse(key, f"{unit} above 0", value)
        return number

    def _gpus(self, raw: dict[str, Any]) -> tuple[str | int, ...]:
        value = raw.get("gpus", [])
        if not isinstance(value, list) or not all(map(_names_a_gpu, value)):
            raise self._refuse(
                "clock.gpus", 'a list of UUIDs, PCI addresses or NVML indices (0, not "0")', value
            )
        return tuple(value)

    def _gpus_on_nodes(self, raw: dict[str, Any]) -> tuple[str, ...]:
        nodes = raw.get("nodes", {})
        if not isinstance(nodes, dict):
            raise self._refuse("clock.nodes", "a table: [clock.nodes]", nodes)
        if nodes and not raw.get("gpus"):
            raise self._refuse("clock.gpus", "this node's GPUs where clock.nodes names others", [])
        for address, indices in nodes.items():
            named = _ADDRESS.fullmatch(address)
            if not named or not 0 < int(named[2]) <= 65535:
                raise self._refuse(f"clock.nodes.{address}", "named HOST:PORT of a zeusd", address)
            if not isinstance(indices, list) or not all(
                type(index) is int and _names_a_gpu(index) for index in indices
            ):
                raise self._refuse(f"clock.nodes.{address}", "a list of NVML indices", indices)
        return tuple(
            on_node(address, index) for address, indices in nodes.items() for index in indices
        )

    def _port(self, raw: dict[str, Any]) -> int | None:
        value = raw.get("metrics_port")
        if value is not None and (type(value) is not int or not 0 <= value < 65536):
            raise self._refuse("metrics_port", "a port number", value)
        return value

    def _address(self, raw: dict[str, Any]) -> str:
        value = raw.get("metrics_address", "127.0.0.1")
        try:
            return str(ip_address(str(value)))
        except ValueError:
            raise self._refuse("metrics_address", "an IP address", value) from None
