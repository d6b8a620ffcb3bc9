import inspect

import pytest

from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import REASONS, NvmlGpus
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError
from beam_runtime.testing.nvml import FakeNvml, FakeNvmlError, fake_gpus

NOT_SUPPORTED, NO_PERMISSION, TIMEOUT, LIBRARY_MISSING, LOST, UNKNOWN = 3, 4, 10, 12, 15, 999


def eight() -> FakeNvml:
    return FakeNvml(fake_gpus(8))


def opened(nvml: FakeNvml) -> NvmlGpus:
    return NvmlGpus([gpu.uuid for gpu in nvml.gpus], nvml=nvml)


def test_the_fake_has_the_names_and_signatures_of_the_real_module() -> None:
    real = pytest.importorskip("pynvml", reason="needs the package nvidia-ml-py")
    ours = [name for name in dir(FakeNvml) if name.startswith("nvml")]
    assert len(ours) > 15
    for name in ours:
        fake = list(inspect.signature(getattr(FakeNvml, name)).parameters)[1:]
        theirs = inspect.signature(inspect.unwrap(getattr(real, name))).parameters
        assert fake == list(theirs)[: len(fake)], name
        needed = [p for p in theirs.values() if p.default is p.empty and p.kind != p.VAR_KEYWORD]
        assert len(needed) <= len(fake) or name == "nvmlInit", name
    assert real.NVML_CLOCK_SM == FakeNvml.NVML_CLOCK_SM
    assert real.NVML_TEMPERATURE_GPU == FakeNvml.NVML_TEMPERATURE_GPU


def test_the_codes_and_bits_are_those_of_nvidia() -> None:
    real = pytest.importorskip("pynvml", reason="needs the package nvidia-ml-py")
    named = {
        NOT_SUPPORTED: "NOT_SUPPORTED",
        NO_PERMISSION: "NO_PERMISSION",
        TIMEOUT: "TIMEOUT",
        LIBRARY_MISSING: "LIBRARY_NOT_FOUND",
        LOST: "GPU_IS_LOST",
        UNKNOWN: "UNKNOWN",
        1: "UNINITIALIZED",
        24: "FREQ_NOT_SUPPORTED",
    }
    for code, name in named.items():
        assert getattr(real, f"NVML_ERROR_{name}") == code
    for bit, text in REASONS.items():
        names = {
            "gpu idle": "GpuIdle",
            "clock setting": "ApplicationsClocksSetting",
            "power cap": "SwPowerCap",
            "hardware slowdown": "HwSlowdown",
            "sync boost": "SyncBoost",
            "thermal, software": "SwThermalSlowdown",
            "thermal, hardware": "HwThermalSlowdown",
            "power brake": "HwPowerBrakeSlowdown",
            "display clock": "DisplayClockSetting",
        }
        assert getattr(real, f"nvmlClocksEventReason{names[text]}") == bit


def test_the_real_library_that_is_missing_is_reported_as_such() -> None:
    real = pytest.importorskip("pynvml", reason="needs the package nvidia-ml-py")
    try:
        real.nvmlInit()
    except real.NVMLError:
        with pytest.raises(ClockUnavailableError, match="NVML could not start") as caught:
            NvmlGpus([0])
        assert "nvidia-smi" in str(caught.value.hint)
    else:
        real.nvmlShutdown()
        pytest.skip("this machine has an NVIDIA driver")


def test_units_are_converted() -> None:
    nvml = FakeNvml()
    nvml.gpus[0].energy_mj, nvml.gpus[0].power_mw = 12_345, 301_500
    with opened(nvml) as gpus:
        assert gpus.read_energy_j() == (12.345,)
        assert gpus.read_power_w() == (301.5,)
        assert gpus.read_temperature_c() == (45.0,)
        assert gpus.driver_version() == "580.159.03"
        assert gpus.identities()[0].name == "NVIDIA A100-SXM4-80GB"
    assert not nvml.initialised


def test_set_read_back_release() -> None:
    nvml = eight()
    gpus = opened(nvml)
    gpus.set(1005)
    assert nvml.locked == [1005] * 8
    assert [reading.clock_mhz for reading in gpus.read_back()] == [1005] * 8
    gpus.release()
    gpus.release()
    assert nvml.locked == [None] * 8


def test_supported_clocks_are_those_that_all_gpus_offer_at_full_memory_clock() -> None:
    nvml = FakeNvml(fake_gpus(2))
    nvml.gpus[1].clocks_mhz = (1395, 1005, 7)
    assert opened(nvml).supported_clocks_mhz() == (1005, 1395)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "90000", None, True, []])
def test_a_reading_that_is_no_number_is_an_error(value: object) -> None:
    nvml = FakeNvml()
    nvml.gpus[0].power_mw = value  # type: ignore[assignment]
    with pytest.raises(ClockError, match="nvmlDeviceGetPowerUsage"):
        opened(nvml).read_power_w()


def test_a_clock_that_is_not_offered_is_refused_with_its_neighbours() -> None:
    nvml = FakeNvml()
    with pytest.raises(ClockUnavailableError, match="1000 MHz") as caught:
        opened(nvml).set(1000)
    assert "990 and 1005" in str(caught.value.hint)
    assert "nvmlDeviceSetGpuLockedClocks" not in nvml.calls


@pytest.mark.parametrize("failing", range(8))
def test_one_gpu_of_eight_fails_and_none_stays_locked(failing: int) -> None:
    nvml = eight()
    gpus = opened(nvml)
    gpus.set(1410)
    nvml.fail("nvmlDeviceSetGpuLockedClocks", LOST, gpu=failing)
    with pytest.raises(ClockUnavailableError, match=f"GPU-{failing}"):
        gpus.set(1005)
    assert nvml.locked == [None] * 8


def test_locks_of_others_on_gpus_that_were_not_reached_stay() -> None:
    nvml = FakeNvml(fake_gpus(3))
    nvml.gpus[2].lock_mhz = 1200  # an administrator's
    nvml.fail("nvmlDeviceSetGpuLockedClocks", LOST, gpu=1)
    gpus = opened(nvml)
    with pytest.raises(ClockError):
        gpus.set(1005)
    assert nvml.locked == [None, None, 1200]
    gpus.release(orphans=True)
    assert nvml.locked == [None, None, None]


def test_a_gpu_that_cannot_be_released_does_not_keep_the_others_locked() -> None:
    nvml = eight()
    gpus = opened(nvml)
    gpus.set(1005)
    nvml.fail("nvmlDeviceResetGpuLockedClocks", LOST, gpu=3)
    with pytest.raises(ClockUnavailableError, match="GPU-3"):
        gpus.release()
    assert nvml.locked == [None, None, None, 1005, None, None, None, None]


def test_no_permission_names_the_three_ways_out() -> None:
    nvml = FakeNvml()
    nvml.fail("nvmlDeviceSetGpuLockedClocks", NO_PERMISSION)
    with pytest.raises(ClockPermissionError) as caught:
        opened(nvml).set(1005)
    for way in ("CAP_SYS_ADMIN", "zeusd", "--clocks current"):
        assert way in str(caught.value.hint)


@pytest.mark.parametrize("code", [TIMEOUT, UNKNOWN])
def test_what_fails_once_is_tried_again(code: int) -> None:
    nvml = FakeNvml()
    gpus = opened(nvml)
    nvml.fail("nvmlDeviceSetGpuLockedClocks", code, times=1)
    gpus.set(1005)
    assert nvml.locked == [1005]


@pytest.mark.parametrize("code", [TIMEOUT, UNKNOWN])
def test_what_fails_twice_is_an_error_and_nothing_stays_locked(code: int) -> None:
    nvml = FakeNvml()
    gpus = opened(nvml)
    nvml.fail("nvmlDeviceSetGpuLockedClocks", code, times=2)
    with pytest.raises(ClockError, match="lock the SM clock"):
        gpus.set(1005)
    assert nvml.locked == [None]


def test_a_lost_gpu_is_not_asked_twice() -> None:
    nvml = FakeNvml()
    gpus = opened(nvml)
    nvml.fail("nvmlDeviceGetClockInfo", LOST)
    with pytest.raises(ClockUnavailableError, match="read the SM clock"):
        gpus.read_back()
    assert nvml.calls.count("nvmlDeviceGetClockInfo") == 1


def test_a_reloaded_driver_is_opened_again_and_gpus_are_found_by_uuid() -> None:
    nvml = FakeNvml(fake_gpus(2))
    gpus = NvmlGpus([1], nvml=nvml)
    nvml.gpus.reverse()  # indices changed meanwhile
    nvml.fail("nvmlDeviceSetGpuLockedClocks", 1, times=1)
    gpus.set(1005)
    assert {gpu.uuid: gpu.lock_mhz for gpu in nvml.gpus} == {"GPU-0": None, "GPU-1": 1005}


@pytest.mark.parametrize(
    ("function", "code", "error"),
    [
        ("nvmlInit", LIBRARY_MISSING, ClockUnavailableError),
        ("nvmlInit", 9, ClockUnavailableError),
        ("nvmlInit", 18, ClockUnavailableError),
        ("nvmlInit", NO_PERMISSION, ClockPermissionError),
        ("nvmlInit", UNKNOWN, ClockError),
        ("nvmlDeviceGetHandleByUUID", 6, ClockUnavailableError),
        ("nvmlDeviceGetUUID", LOST, ClockUnavailableError),
    ],
)
def test_a_start_that_fails_leaves_nvml_closed(
    function: str, code: int, error: type[ClockError]
) -> None:
    nvml = FakeNvml()
    nvml.fail(function, code)
    with pytest.raises(error) as caught:
        opened(nvml)
    assert str(code) in str(caught.value.cause)
    assert caught.value.hint
    assert not nvml.initialised


def test_mig_and_vgpu_are_told_that_locking_is_not_supported() -> None:
    nvml = FakeNvml()
    nvml.fail("nvmlDeviceSetGpuLockedClocks", NOT_SUPPORTED)
    with pytest.raises(ClockUnavailableError) as caught:
        opened(nvml).set(1005)
    assert "MIG" in str(caught.value.hint)
    assert nvml.locked == [None]


def test_an_absent_energy_counter_says_what_is_missing() -> None:
    nvml = FakeNvml()
    nvml.fail("nvmlDeviceGetTotalEnergyConsumption", NOT_SUPPORTED)
    with pytest.raises(ClockUnavailableError, match="energy counter"):
        opened(nvml).read_energy_j()


def test_an_index_or_list_that_names_no_gpu_is_refused() -> None:
    with pytest.raises(ClockUnavailableError, match="find the GPU"):
        NvmlGpus([5], nvml=FakeNvml())
    with pytest.raises(ClockUnavailableError, match="no GPU"):
        NvmlGpus([], nvml=FakeNvml())


@pytest.mark.parametrize("index", [1 << 32, -(1 << 32), (1 << 64) + 1, -1, True, 1.0, None])
def test_an_index_that_the_binding_would_cut_to_another_one_is_refused(index: object) -> None:
    nvml = FakeNvml(fake_gpus(2))
    with pytest.raises(ClockUnavailableError, match="no GPU"):
        NvmlGpus([index], nvml=nvml)  # type: ignore[list-item]
    assert not nvml.initialised


def test_reasons_are_text() -> None:
    nvml = FakeNvml()
    nvml.gpus[0].reasons = 0x004 | 0x040 | 0x001
    (reading,) = opened(nvml).read_back()
    assert reading.reasons == ("gpu idle", "power cap", "thermal, hardware")
    assert reading.throttle == ("power cap", "thermal, hardware")


def test_errors_of_the_fake_carry_their_code_as_the_real_ones_do() -> None:
    real = pytest.importorskip("pynvml", reason="needs the package nvidia-ml-py")
    assert real.NVMLError(LOST).value == FakeNvmlError(LOST).value == LOST


def without(*functions: str) -> FakeNvml:
    """A binding that is older than these functions."""

    def absent(self: FakeNvml) -> None:
        raise AttributeError("module 'pynvml' has no such attribute")

    parts = {"__slots__": (), **dict.fromkeys(functions, property(absent))}
    made: FakeNvml = type("Old", (FakeNvml,), parts)(gpus=fake_gpus(2))
    return made


REASONS_NOW = "nvmlDeviceGetCurrentClocksEventReasons"
REASONS_THEN = "nvmlDeviceGetCurrentClocksThrottleReasons"


def test_an_older_name_of_a_function_is_tried() -> None:
    old = without(REASONS_NOW)
    type(old).nvmlDeviceGetCurrentClocksThrottleReasons = (  # type: ignore[attr-defined]
        lambda self, handle: 4
    )
    assert opened(old).read_reasons() == (("power cap",), ("power cap",))
    assert opened(without(REASONS_NOW, REASONS_THEN)).read_reasons() == (None, None)


@pytest.mark.parametrize(
    "function", [name for name in dir(FakeNvml) if name.startswith("nvmlDevice")]
)
def test_a_binding_that_lacks_a_function_locks_whole_or_says_so(function: str) -> None:
    nvml = without(function)
    try:
        with ClockLock(NvmlGpus([0, 1], nvml=nvml), settle_s=0.1) as lock:
            lock.set(1005)
            assert nvml.locked == [1005, 1005]
    except ClockError as error:
        assert "pip install -U nvidia-ml-py" in str(error)
    assert nvml.locked == [None, None]


def test_a_gpu_by_two_of_its_names_is_named_twice() -> None:
    nvml = FakeNvml(fake_gpus(2))
    place = NvmlGpus([0], nvml=nvml).identities()[0].pci_address
    for names in ([0, 0], [0, "GPU-0"], ["GPU-0", place]):
        with pytest.raises(ClockUnavailableError, match="GPU-0 is named twice"):
            NvmlGpus(names, nvml=nvml)
