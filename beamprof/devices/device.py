"""A GPU as the modelled backend sees it: clocks, peaks and fitted constants, from a TOML file.

Knows how to find and check a device file and which clocks the device offers. Does not talk to
a driver: what a real GPU supports comes from beam_runtime.clocks. Every constant's source and
error stand beside it in its file.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from beam_runtime.engines import toml
from beam_runtime.errors import ClockUnavailableError
from beamprof.devices.constants import (
    AllReduce,
    AttentionKernels,
    Clocks,
    Compute,
    DeltaKernels,
    GemmKernels,
    LatentKernels,
    Launch,
    Memory,
    MoeKernels,
    Power,
)
from beamprof.errors import DeviceError
from beamprof.files import read_text, user_path
from beamprof.models.formats import FORMATS, Format

_Section = TypeVar("_Section")
# What weights and KV cache may take of a GPU; vLLM, too, leaves a tenth to activations and graphs
# by default.
GPU_MEMORY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU model. ``accuracy`` says in words how far its numbers can be trusted."""

    name: str
    nvml_names: tuple[str, ...]
    accuracy: str
    clocks: Clocks
    compute: Compute
    memory: Memory
    launch: Launch
    allreduce: AllReduce
    power: Power
    gemm: Mapping[str, GemmKernels]
    attention: Mapping[str, AttentionKernels]
    moe: Mapping[str, MoeKernels]
    latent: LatentKernels | None = None
    delta: DeltaKernels | None = None

    @property
    def weight_room_bytes(self) -> float:
        """What one GPU leaves to weights and KV cache."""
        return GPU_MEMORY_SHARE * self.memory.size_gb * 1e9

    def gemm_kernels(self, form: Format) -> GemmKernels:
        """Kernels of a format; without its own, weights are unpacked to 16 bit first."""
        return self.gemm.get(form.name) or self.gemm.get(form.arithmetic) or self.gemm["bfloat16"]

    def attention_kernels(self, kv: str) -> AttentionKernels:
        """Attention over a cache of that format."""
        return self.attention.get(kv, self.attention["bfloat16"])

    def moe_kernels(self, form: Format) -> MoeKernels:
        """Grouped GEMMs of a format; without its own, of bf16 with that format's bytes.

        Raises:
            DeviceError: the file has no constants for experts at all.
        """
        found = self.moe.get(form.name) or self.moe.get("bfloat16")
        if found is None:
            raise DeviceError(
                f"{self.name}'s file has no constants for models with experts",
                hint=devices_with("moe"),
            )
        return found

    def check_clocks(self, clocks_mhz: Iterable[int]) -> None:
        """Refuse clocks that the device does not offer.

        Raises:
            ClockUnavailableError: the hint names the nearest clocks it does offer.
        """
        supported = self.clocks.supported_mhz
        wrong = sorted({clock for clock in clocks_mhz if clock not in set(supported)})
        if wrong:
            nearest = sorted({min(supported, key=lambda c: abs(c - clock)) for clock in wrong})
            raise ClockUnavailableError(
                f"{self.name} cannot lock {_listed(wrong)} MHz",
                cause=f"it offers {supported[0]}..{supported[-1]} MHz in steps of "
                f"{self.clocks.step_mhz}",
                hint=f"nearest: {_listed(nearest)} MHz",
            )


# Words that tell boards of one GPU apart: their limits, memories and clocks differ.
_BOARD = re.compile(
    r"pcie|nvl|sxm[0-9]?|[0-9]+gb|hbm[0-9]e?|ada|super|ti|laptop|mobile|max|mig|[0-9]+g"
)


def device_names() -> list[str]:
    """The devices that ship with BEAM."""
    files = resources.files("beamprof.devices").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def resolve_device(name: str) -> Device:
    """A device that ships with BEAM, or the path of a device file of one's own.

    Raises:
        DeviceError: unknown name, or a file that cannot be read or understood.
    """
    if name.endswith(".toml"):
        path = user_path(name)
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            raise DeviceError(
                f"cannot read the device file {name}", cause=str(error), hint=_known_hint()
            ) from None
        return parse_device(text, path.stem, name)
    meant = _shipped_names(name)
    if len(meant) == 1:
        return _shipped(meant[0])
    if meant:
        raise DeviceError(
            f"device {name!r} may be {' or '.join(meant)}", hint=f"say which: --device {meant[0]}"
        )
    words = re.findall(r"[a-z0-9]+", name.lower())
    models = {word for word in words if not word.isalpha() and not _BOARD.fullmatch(word)}
    near = [known for known in device_names() if models & set(known.split("-"))]
    meant = [known for known in near if _may_be(words, known)]
    meaning = f"did you mean {' or '.join(meant)}? " if meant else ""
    if near and not meant:
        meaning = f"{' and '.join(near)} {'is' if len(near) == 1 else 'are'} not that board; "
    raise DeviceError(
        f"unknown device {name!r}",
        cause="no device file of that name ships with BEAM",
        hint=meaning + _known_hint(),
    )


def _shipped_names(name: str) -> list[str]:
    """The files for a name as people write it: another case, spaces, a vendor; never a guess.

    "H100" stands for every file whose name has H100 as its first words; "H20", another GPU, does
    not stand for h200.
    """
    wanted = _letters(name)
    for known in device_names():
        if wanted in {_letters(known), *map(_letters, _shipped(known).nvml_names)}:
            return [known]
    return [known for known in device_names() if wanted in _beginnings(known)]


def _may_be(words: Iterable[str], known: str) -> bool:
    """Whether no word makes it another board; a slip (smx4), half a word or a vendor does not."""
    names = (known, *_shipped(known).nvml_names)
    its = {word for name in names for word in re.findall(r"[a-z0-9]+", name.lower())}
    its.add(f"{_shipped(known).memory.size_gb:.0f}gb")
    boards = [word for word in words if _BOARD.fullmatch(word)]
    return all(any(word.startswith(one) or one.startswith(word) for one in its) for word in boards)


def _beginnings(known: str) -> set[str]:
    """A file's name, cut after each of its words: a100, a100-sxm4."""
    words = known.split("-")
    return {_letters("".join(words[:count])) for count in range(1, len(words))}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia"))


@cache
def _shipped(name: str) -> Device:
    text = resources.files("beamprof.devices").joinpath(f"{name}.toml").read_text("utf-8")
    return parse_device(text, name, f"{name}.toml")


def detect_device(nvml_name: str) -> str | None:
    """The device file for a GPU as the driver names it, e.g. 'NVIDIA A100-SXM4-80GB'."""
    for name in device_names():
        if nvml_name.lower() in (known.lower() for known in resolve_device(name).nvml_names):
            return name
    return None


def parse_device(text: str, name: str, where: str) -> Device:
    """A device from the text of its file.

    Raises:
        DeviceError: not TOML; a section or constant that is missing, unknown or senseless.
    """
    from beamprof.devices.device_checks import check  # which asks the model that reads a Device

    try:
        data = toml.loads(text)
    except ValueError as error:
        raise DeviceError(f"{where} is not TOML", cause=str(error)) from None
    device = Device(
        name=name,
        nvml_names=_names(data.pop("nvml_names", []), where),
        accuracy=_accuracy(data.pop("accuracy", ""), where),
        clocks=_section(Clocks, data, "clocks", where),
        compute=_section(Compute, data, "compute", where),
        memory=_section(Memory, data, "memory", where),
        launch=_section(Launch, data, "launch", where),
        allreduce=_section(AllReduce, data, "allreduce", where),
        power=_section(Power, data, "power", where),
        gemm=_sections(GemmKernels, data, "gemm", where),
        attention=_sections(AttentionKernels, data, "attention", where),
        moe=_sections(MoeKernels, data, "moe", where) if "moe" in data else {},
        latent=_section(LatentKernels, data, "latent", where) if "latent" in data else None,
        delta=_section(DeltaKernels, data, "delta", where) if "delta" in data else None,
    )
    if data:
        raise DeviceError(f"{where} has an unknown entry {next(iter(data))!r}")
    check(device, where)
    return device


def _accuracy(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DeviceError(
            f"{where}: accuracy must say how far its numbers can be trusted, found {value!r:.60}",
            hint='every table carries it: accuracy = "never compared with a measured table"',
        )
    return value


def _names(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DeviceError(f"{where}: nvml_names must be a list of strings, found {value!r:.60}")
    return tuple(value)


def _sections(
    kind: type[_Section], data: dict[str, Any], section: str, where: str
) -> dict[str, _Section]:
    """[section.<format>], one for each format; bfloat16 is always there."""
    tables = data.pop(section, None)
    if not isinstance(tables, dict) or "bfloat16" not in tables:
        raise DeviceError(f"{where} lacks the section [{section}.bfloat16]", hint=_example_hint())
    for form in tables.keys() - FORMATS.keys():
        raise DeviceError(
            f"{where} has an unknown format [{section}.{form}]",
            hint=f"formats are {_listed(FORMATS)}",
        )
    return {
        form: _section(kind, {section: table}, section, where, f"{section}.{form}")
        for form, table in tables.items()
    }


def _section(
    kind: type[_Section], data: dict[str, Any], section: str, where: str, title: str = ""
) -> _Section:
    table, title = data.pop(section, None), title or section
    if not isinstance(table, dict):
        raise DeviceError(f"{where} lacks the section [{title}]", hint=_example_hint())
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    wanted = {field.name: field.type for field in fields}
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    for key in (needed - table.keys()) | (table.keys() - wanted.keys()):
        fault = "lacks" if key in wanted else "has an unknown"
        raise DeviceError(f"{where}: [{title}] {fault} {key!r}", hint=_example_hint())
    values = {}
    for key, given in table.items():
        value = given
        if key in _BY_HEAD_SIZE and isinstance(table["head_dims"], list) and _is_number(given):
            value = [given] * len(table["head_dims"])
        numbers = value if isinstance(value, list) else [value]
        is_list, whole = str(wanted[key]).startswith("tuple"), "int" in str(wanted[key])
        sound = all(_is_number(one) and (isinstance(one, int) or not whole) for one in numbers)
        if is_list != isinstance(value, list) or not numbers or not sound:
            number = "whole number" if whole else "number"
            expected = f"a list of {number}s" if is_list else f"a {number}"
            raise DeviceError(
                f"{where}: [{title}] {key} must be {expected}, 0 or more, found {value!r}"
            )
        values[key] = tuple(value) if is_list else value
    return kind(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


# Where one number may stand for all head sizes.
_BY_HEAD_SIZE = ("kv_bytes_per_clock",)


def devices_with(section: str) -> str:
    """A hint at the devices whose files have a section: "moe", "latent" or "delta"."""
    having = (name for name in device_names() if getattr(_shipped(name), section))
    return f"devices that have: {_listed(having)}"


def _known_hint() -> str:
    return f"known devices: {_listed(device_names())}; or give the path of a device file (.toml)"


def _example_hint() -> str:
    return "compare it with a device file that ships in beamprof/devices/"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
