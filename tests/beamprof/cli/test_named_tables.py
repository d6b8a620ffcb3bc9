"""A table is found by any name of its model and GPU; a hint makes the one that is wanted."""

import json
import shlex
from pathlib import Path

import pytest

from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.profile_command import profile_command
from beamprof.cli.main import main
from beamprof.cli.streams import load_table
from beamprof.devices.device import resolve_device
from beamprof.models.registry import entries, registered_config, table_names

SHIPPED = Path(__file__).parents[3] / "tables"
TABLE = SHIPPED / "h100-sxm/llama3.3-70b/tp4-pp1.parquet"


def test_every_way_to_write_a_model_finds_its_tables() -> None:
    for name, entry in entries().items():
        for written in (name, name.upper(), entry["id"], *entry.get("aliases", ())):
            assert name in table_names(written)
            assert not (set(entries()) - {name}) & table_names(written)


@pytest.mark.parametrize(
    "model", ["llama3.3-70b", "LLaMA3.3-70B", "meta-llama/Llama-3.3-70B-Instruct"]
)
@pytest.mark.parametrize("device", [None, "H100", "NVIDIA H100 80GB HBM3", "h100-sxm"])
def test_a_table_is_loaded_under_any_name(model: str, device: str | None) -> None:
    assert load_table(TABLE, model=model, device=device).model == "llama3.3-70b"


def test_a_table_of_a_folder_is_loaded_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(registered_config("llama3.1-8b")))
    out = tmp_path / "t.parquet"
    profile = ["profile", "--model", str(folder), "--device", "h100", "--backend", "modelled"]
    assert main([*profile, "--max-tokens", "64", "--clocks", "1980", "-o", str(out)]) == 0
    for name in (str(folder), str(folder / "config.json"), "Mine"):
        assert load_table(out, model=name).model == "Mine"


@pytest.mark.parametrize(
    "wanted", [{"model": "qwen3-32b"}, {"device": "B200"}, {"tp": 2}, {"pp": 2}, {"model": "x y"}]
)
def test_the_hint_makes_the_table_that_was_wanted(wanted: dict[str, str | int]) -> None:
    with pytest.raises(TableError, match="is a table for") as caught:
        load_table(TABLE, **wanted)  # type: ignore[arg-type]
    words = shlex.split((caught.value.hint or "").partition(": ")[2])
    assert words[:2] == ["beam", "profile"]
    flags = dict(zip(words[2::2], words[3::2], strict=True))
    asked = {"model": "llama3.3-70b", "device": "h100-sxm", "tp": 4, "pp": 1, **wanted}
    told = {key: resolve_device(str(value)).name if key == "device" else str(value)
            for key, value in asked.items()}  # fmt: skip
    assert flags == {f"--{key}": value for key, value in told.items()}
    if wanted != {"model": "x y"}:
        assert main([*words[1:], "--dry-run"]) == 0


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.parquet")), ids=lambda p: p.parent.name)
def test_the_command_for_a_table_is_of_that_table(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = PerfTable.load(path)
    words = shlex.split(profile_command(table.metadata))
    assert main([*words[1:], "--backend", "modelled", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["data"]
    assert (planned["model"], planned["device"], planned["tp"], planned["pp"]) == (
        table.model, table.device, table.tp, table.pp,
    )  # fmt: skip


def test_formats_and_experts_are_part_of_it() -> None:
    kept = json.dumps({"precision": {"kv": "fp8"}})
    metadata = {"model": "m", "device": "d", "tp": "1", "pp": "1", "ep": "2",
                "dtype": "float16", "model_shape": kept}  # fmt: skip
    command = profile_command(metadata)
    assert command.endswith("--ep 2 --dtype float16 --kv-cache-dtype fp8")
    assert "dtype" not in profile_command(metadata, model="another")
