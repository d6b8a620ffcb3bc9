from pathlib import Path

import pytest

from beamprof.backends.rapl import RaplCounter
from beamprof.errors import BackendError


def zone(root: Path, number: str, name: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    path = root / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


def test_packages_and_their_memory_are_added_up(tmp_path: Path) -> None:
    counting = [
        zone(tmp_path, "0", "package-0", 100),
        zone(tmp_path, "1", "package-1", 900_000),
        zone(tmp_path, "0:1", "dram", 5),
    ]
    inside = [zone(tmp_path, "0:0", "core", 50), zone(tmp_path, "2", "psys", 70)]
    counter = RaplCounter(tmp_path)
    assert counter.read_energy_j() == (0.0,)
    for path in counting + inside:
        (path / "energy_uj").write_text(str(int((path / "energy_uj").read_text()) + 50_000))
    assert counter.read_energy_j() == (pytest.approx(0.15),)


def test_a_counter_that_starts_again_keeps_growing(tmp_path: Path) -> None:
    path = zone(tmp_path, "0", "package-0", 999_990, range_uj=999_999)
    counter = RaplCounter(tmp_path)
    (path / "energy_uj").write_text("9")
    assert counter.read_energy_j() == (pytest.approx(19e-6),)
    (path / "energy_uj").write_text("10")
    assert counter.read_energy_j() == (pytest.approx(20e-6),)


def test_no_rapl_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be measured") as caught:
        RaplCounter(tmp_path / "nothing")
    assert "--assume-power 65W" in str(caught.value.hint)


def test_an_unreadable_counter_names_the_way_out(tmp_path: Path) -> None:
    path = zone(tmp_path, "0", "package-0", 1)
    (path / "energy_uj").unlink()
    (path / "energy_uj").mkdir()  # reading it fails for root too, whom permissions do not stop
    with pytest.raises(BackendError, match="may not be read") as caught:
        RaplCounter(tmp_path)
    assert "--assume-power 65W" in str(caught.value.hint)
    assert "energy_uj" in str(caught.value.cause)


def test_a_counter_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    path = zone(tmp_path, "0", "package-0", 1)
    (path / "energy_uj").write_text("lots")
    with pytest.raises(BackendError, match="no number"):
        RaplCounter(tmp_path)
