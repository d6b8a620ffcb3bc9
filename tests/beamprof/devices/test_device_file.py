"""Device files: found, checked, refused with a hint."""

from importlib import resources
from pathlib import Path

import pytest

from beam_runtime.errors import ClockUnavailableError
from beamprof.devices.device import detect_device, device_names, parse_device, resolve_device
from beamprof.errors import DeviceError

A100 = "a100-sxm4-80gb"


def a100_text() -> str:
    return resources.files("beamprof.devices").joinpath(f"{A100}.toml").read_text("utf-8")


def test_ships_what_people_serve_on() -> None:
    assert {"a100-pcie-80gb", A100, "b200", "h100-sxm", "h200-sxm", "l40s"} <= set(device_names())


@pytest.mark.parametrize("name", device_names())
def test_every_device_file_is_sound(name: str) -> None:
    device = resolve_device(name)
    assert device.name == name
    assert device.accuracy.strip()
    assert detect_device(device.nvml_names[0]) == name
    device.check_clocks(device.clocks.profile_mhz)


def test_the_a100_offers_its_81_clocks() -> None:
    clocks = resolve_device(A100).clocks.supported_mhz
    assert (len(clocks), clocks[0], clocks[-1]) == (81, 210, 1410)


@pytest.mark.parametrize(
    ("written", "name"),
    [("H100", "h100-sxm"), ("h200 sxm", "h200-sxm"), ("NVIDIA B200", "b200"), ("L40s", "l40s"),
     ("NVIDIA A100-SXM4-80GB", A100), ("A100_PCIe_80GB", "a100-pcie-80gb")],
)  # fmt: skip
def test_names_as_people_write_them(written: str, name: str) -> None:
    assert resolve_device(written).name == name


def test_one_rate_may_stand_for_all_head_sizes() -> None:
    text = a100_text()
    (line,) = [one for one in text.splitlines() if one.startswith("kv_bytes_per_clock")]
    device = parse_device(text.replace(line, "kv_bytes_per_clock = 15.0"), "mine", "mine.toml")
    kernels = device.attention["bfloat16"]
    assert kernels.kv_bytes_per_clock == (15.0,) * len(kernels.head_dims)


@pytest.mark.parametrize("written", ["h", "", "..", "h100/../x", "H20", "L40", "B20", "H10", "A10"])
def test_unknown_device_lists_the_known(written: str) -> None:
    with pytest.raises(DeviceError, match="unknown device") as caught:
        resolve_device(written)
    assert A100 in str(caught.value.hint)


def test_a_name_of_a_million_letters_is_refused_as_any_other() -> None:
    """Looking for words in it takes one pass; one for each letter would not end today."""
    with pytest.raises(DeviceError, match="unknown device"):
        resolve_device("x" * 1_000_000)


@pytest.mark.parametrize("written", ["my a100 card", "vendor_A100_80gb"])
def test_a_model_within_a_name_gives_the_hint(written: str) -> None:
    with pytest.raises(DeviceError) as caught:
        resolve_device(written)
    assert "did you mean a100-pcie-80gb or a100-sxm4-80gb?" in str(caught.value.hint)


def test_a_name_that_two_gpus_share_is_not_guessed() -> None:
    with pytest.raises(DeviceError, match="may be a100-pcie-80gb or a100-sxm4-80gb"):
        resolve_device("A100")


def test_unknown_gpu_is_not_guessed() -> None:
    assert detect_device("NVIDIA GeForce RTX 4090") is None


def test_a_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(a100_text().replace("cap_w = 400 ", "cap_w = 250.0"))
    mine = resolve_device(str(path))
    assert (mine.name, mine.power.cap_w) == ("mine", 250.0)


def test_clocks_outside_the_list_name_the_nearest() -> None:
    with pytest.raises(ClockUnavailableError, match="1000, 2000 MHz") as caught:
        resolve_device(A100).check_clocks([1000, 1005, 2000])
    assert caught.value.hint == "nearest: 1005, 1410 MHz"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[power]", "[watts]", "lacks the section"),
        ("sms = 108", "", "lacks 'sms'"),
        ("sms = 108", "sms = 108\ncores = 4", "unknown 'cores'"),
        ("sms = 108", "sms = 0", "must be above 0"),
        ("sms = 108", 'sms = "108"', "must be a whole number"),
        ("sms = 108", "sms = -108", "0 or more"),
        ("sms = 108", "sms = true", "must be a whole number"),
        ("cap_w = 400 ", "cap_w = nan ", "must be a number"),
        ("stall_share = 0.7222", "stall_share = 1.5", "stall_share"),
        ("size_gb = 80", "size_gb = 81559", "size_gb must be 3,000 at most, found 81,559"),
        ("flops_per_clock = 2048", "flops_per_clock = 221184", "must be 100,000 at most"),
        ("cap_w = 400 ", "cap_w = 50 ", "cannot be held: at its lowest clock, 210 MHz"),
        ("cap_w = 400 ", "cap_w = 150 ", "cap_w 150 cannot be held"),
        ("floor_w = 74.6", "floor_w = 800", "a busy GPU draws 89[0-9] W"),
        ("reduce_idle_share = 0.6245", "reduce_idle_share = 1.5", "reduce_idle_share must be 0 to"),
        ("[0.858, 0.9967, 1.258, 1.515, 1.594]", "[3, 2, 1, 1, 1]", "falls with the clock, from 3"),
        ("[0.858, 0.9967, 1.258, 1.515, 1.594]", "[0.858, 0.9967, 1.258, 1.515, 1.2]", "to 1.2 at"),
        ("accuracy = ", "# ", "accuracy must say how far"),
        ('accuracy = "latency', 'accuracy = " " # "latency', "accuracy must say how far"),
        ('accuracy = "latency', 'accuracy = 3 # "latency', "accuracy must say how far"),
        ("[15.03, 15.03]", "[15.03]", "number for each of head_dims"),
        ("[15.03, 15.03]", '"fast"', "kv_bytes_per_clock must be a list"),
        ("head_dims = [64, 128]", "head_dims = 128", "must be a list"),
        ("step_mhz = 15", "step_mhz = 0", "step_mhz"),
        ("step_mhz = 15", "step_mhz = 0.5", "must be a whole number"),
        ("min_mhz = 210", "min_mhz = 1e-300", "must be a whole number"),
        ("max_mhz = 1410", "max_mhz = 900000000000", "max_mhz < 100000"),
        ("step_mhz = 15", "step_mhz = 70", "outside the device's list"),
        ("clocks_mhz = [600,", "clocks_mhz = [", "differ in length"),
        ("clocks_mhz = [600, 690,", "clocks_mhz = [690, 600,", "ascend"),
        ("clocks_mhz = [600, 690, 780, 900, 1050]", "clocks_mhz = 600", "a list of numbers"),
        ("us_8 = [8.788, 8.893,", "us_8 = [8.893, 8.788,", "us_8 falls"),
        ("[power]", "[extra]\nx = 1\n[power]", "unknown entry 'extra'"),
        ("[power]", "[power", "not TOML"),
        ("sms = 108", "sms = " + "9" * 5000, "not TOML"),
        ("sms = 108", "sms = " + "[" * 5000, "not TOML"),
    ],
)
def test_a_broken_file_is_refused(old: str, new: str, message: str) -> None:
    text = a100_text()
    assert old in text
    with pytest.raises(DeviceError, match=message):
        parse_device(text.replace(old, new, 1), "broken", "broken.toml")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    for name in (tmp_path / "none.toml", "x" * 5000 + ".toml", "~nobody-of-this-name/x.toml"):
        with pytest.raises(DeviceError, match="cannot read the device file"):
            resolve_device(str(name))


@pytest.mark.parametrize(
    "name",
    [
        "h100-pcie",
        "H100 NVL",
        "a100-40gb",
        "NVIDIA A100-PCIE-40GB",
        "A100-SXM4-40GB",
        "h200-nvl",
        "rtx-6000-ada",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    ],
)
def test_another_board_is_not_offered_as_this_one(name: str) -> None:
    with pytest.raises(DeviceError, match="unknown device") as caught:
        resolve_device(name)
    assert "did you mean" not in (caught.value.hint or "")
    assert "not that board" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "name",
    ["NVIDIA GH200 480GB", "NVIDIA H20", "NVIDIA A800-SXM4-80GB", "NVIDIA L40", "NVIDIA L4",
     "NVIDIA A10", "Tesla V100-SXM2-32GB", "AMD Instinct MI300X", "NVIDIA GB200", "NVIDIA B300"],
)  # fmt: skip
def test_another_gpu_is_neither_priced_nor_taken_for_a_slip(name: str) -> None:
    with pytest.raises(DeviceError, match="unknown device") as caught:
        resolve_device(name)
    assert (caught.value.hint or "").startswith("known devices:")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("h100-sxm5", "h100-sxm"),
        ("sxm4-a100!", "a100-sxm4-80gb"),
        ("A100 SXM", "a100-sxm4-80gb"),
        ("H200 141GB", "h200-sxm"),
        ("L40S-48GB", "l40s"),
    ],
)
def test_a_slip_in_a_board_is_answered(name: str, meant: str) -> None:
    with pytest.raises(DeviceError, match="unknown device") as caught:
        resolve_device(name)
    assert f"did you mean {meant}?" in (caught.value.hint or "")
