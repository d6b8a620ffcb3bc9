"""Which backend is chosen, by what is found; nothing here needs a GPU or torch."""

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from beam_runtime.testing.nvml import FakeGpu, FakeNvml
from beamprof.errors import BackendError, DeviceError
from beamprof.models.registry import resolve_model
from beamprof.profiler import choose_backend as choose
from beamprof.profiler.choose_backend import Gpu, choose_backend, cpu_clock_mhz
from beamprof.profiler.spec import resolve_spec

MODEL = resolve_model("llama3-8b")
A100 = Gpu("NVIDIA A100-SXM4-80GB", tuple(range(210, 1411, 15)))
UNKNOWN = Gpu("NVIDIA Somewhat New 42GB", (600, 900, 1200))


def pick(
    monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, *, torch: str = "cuda", vllm: bool = False,
    gpus: int = 1, tp: int = 1, **flags: str,
) -> choose.Choice:  # fmt: skip
    here = {"torch": torch != "absent", "vllm": vllm}
    monkeypatch.setattr(choose, "find_gpu", lambda: gpu)
    monkeypatch.setattr(choose, "find_spec", lambda name: object() if here[name] else None)
    monkeypatch.setattr(choose, "_torch_sees_cuda", lambda: torch == "cuda")
    monkeypatch.setattr(choose, "_torch_sees_gpus", lambda: gpus)
    return choose_backend(resolve_spec(flags), MODEL, MODEL.shard(tp, 1))


def test_without_a_gpu_it_is_modelled_on_an_a100_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = pick(monkeypatch, None)
    assert (choice.backend, choice.clocks.device) == ("modelled", "a100-sxm4-80gb")
    assert "no NVIDIA GPU" in choice.reason


def test_a_gpu_that_torch_can_use_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = pick(monkeypatch, A100)
    assert (choice.backend, choice.clocks.device) == ("torch", "a100-sxm4-80gb")
    assert choice.clocks.supported_mhz == A100.supported_mhz
    assert "A100-SXM4-80GB" in choice.reason


@pytest.mark.parametrize(
    ("torch", "reason"), [("absent", "pip install 'beamprof[torch]'"), ("cpu", "cannot use CUDA")]
)
def test_a_gpu_that_torch_cannot_use_is_not_pretended(
    monkeypatch: pytest.MonkeyPatch, torch: str, reason: str
) -> None:
    choice = pick(monkeypatch, A100, torch=torch)
    assert choice.backend == "modelled"
    assert reason in choice.reason


def test_another_device_than_the_one_here_is_modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = pick(monkeypatch, A100, device="h100-sxm")
    assert (choice.backend, choice.clocks.device) == ("modelled", "h100-sxm")


def test_a_gpu_without_a_device_file_is_measured_under_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = pick(monkeypatch, UNKNOWN)
    assert (choice.clocks.device, choice.device_file) == ("somewhat-new-42gb", None)


def test_a_gpu_asked_for_and_none_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="no GPU is here") as caught:
        pick(monkeypatch, None, backend="torch", device="a100-sxm4-80gb")
    assert "--backend modelled" in str(caught.value.hint)
    with pytest.raises(BackendError, match="another one"):
        pick(monkeypatch, A100, backend="torch", device="h200-sxm")


def test_torch_without_a_gpu_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = pick(monkeypatch, None, backend="torch")
    assert (choice.backend, choice.clocks.device, choice.clocks.supported_mhz) == (
        "torch", "cpu", ()
    )  # fmt: skip
    assert pick(monkeypatch, A100, device="cpu").clocks.device == "cpu"


def test_misspelt_names_are_refused_whatever_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu in (None, A100):
        with pytest.raises(DeviceError, match="unknown device"):
            pick(monkeypatch, gpu, device="a100-smx")
        with pytest.raises(BackendError, match="unknown backend"):
            pick(monkeypatch, gpu, backend="vlm")


def test_the_clock_of_a_cpu(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\ncpu MHz\t\t: 2399.998\nprocessor : 1\ncpu MHz : 2600.2\n")
    assert cpu_clock_mhz(cpuinfo) == 2600
    cpuinfo.write_text("Processor : ARMv8\n")
    assert cpu_clock_mhz(cpuinfo) == 1
    assert cpu_clock_mhz(tmp_path / "none") == 1


def test_with_vllm_on_a_gpu_the_engine_itself_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = pick(monkeypatch, A100, vllm=True)
    assert (choice.backend, choice.clocks.device) == ("vllm", "a100-sxm4-80gb")
    assert "vLLM is installed" in choice.reason
    assert pick(monkeypatch, A100, vllm=True, backend="torch").backend == "torch"
    assert pick(monkeypatch, None, vllm=True).backend == "modelled"


@pytest.mark.parametrize(
    ("vllm", "gpus", "ranks", "why"),
    [
        (False, 2, "1", "not installed"),
        (True, 1, "1", "needs 2 GPUs for tp 2, 1 can be seen"),
        (True, 2, "2", "torchrun"),
    ],
)
def test_where_vllm_cannot_be_measured_torch_is_and_the_reason_told(
    monkeypatch: pytest.MonkeyPatch, vllm: bool, gpus: int, ranks: str, why: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", ranks)
    choice = pick(monkeypatch, A100, vllm=vllm, gpus=gpus, tp=2)
    assert choice.backend == "torch"
    assert why in choice.reason


def test_vllm_asked_for_and_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="needs vLLM") as caught:
        pick(monkeypatch, None, backend="vllm")
    assert "pip install beamprof" in str(caught.value.hint)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BackendError, match="workers itself"):
        pick(monkeypatch, A100, vllm=True, backend="vllm")


def test_vllm_without_a_gpu_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = pick(monkeypatch, None, vllm=True, backend="vllm")
    assert (choice.backend, choice.clocks.device) == ("vllm", "cpu")


H100 = FakeGpu("GPU-h", name="NVIDIA H100 80GB HBM3", clocks_mhz=tuple(range(1980, 209, -15)),
               memory_clocks_mhz=(2619, 1593), pci_bus_id="00000000:41:00.0")  # fmt: skip
DISPLAY = FakeGpu("GPU-d", name="NVIDIA T400 4GB", clocks_mhz=tuple(range(1425, 299, -15)),
                  memory_clocks_mhz=(5001, 405))  # fmt: skip


@pytest.mark.parametrize("tells", ["uuid", "pci", "nothing"])
def test_the_gpu_that_torch_uses_is_described_not_nvmls_first(
    monkeypatch: pytest.MonkeyPatch, tells: str
) -> None:
    """A display card comes first in NVML's order; torch's first is the H100 behind it."""
    nvml = FakeNvml(gpus=[DISPLAY, H100])
    monkeypatch.setattr("beam_runtime.clocks.nvml._import_pynvml", lambda: nvml)
    seen = {"uuid": {"uuid": "h"}, "pci": {}, "nothing": {}}[tells]
    place = {"pci_domain_id": 0, "pci_bus_id": 0x41, "pci_device_id": 0}
    properties = SimpleNamespace(name=H100.name, **seen, **(place if tells != "nothing" else {}))
    torch = ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda *at: properties,
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    if tells == "nothing":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-h")
    found = choose.find_gpu()
    assert found is not None
    assert found.name == H100.name
    assert found.supported_mhz[-1] == 1980
