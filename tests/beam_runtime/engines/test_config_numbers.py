"""Numbers of any size in beam.toml are refused by the field's name."""

from pathlib import Path

import pytest

from beam_runtime.engines.config import EmbeddedConfig
from beam_runtime.errors import BeamError


@pytest.mark.parametrize(
    "value", ["1" * 400, "1" * 5000, "inf", "nan", "-inf", "0", "-1", "true", '"200"', "[200]"]
)
@pytest.mark.parametrize(
    "field", ["slo.ttft_ms", "slo.tbt_ms", "slo.batch.ttft_ms", "clock.idle_power_w"]
)
def test_a_number_that_is_no_time_and_no_power(tmp_path: Path, field: str, value: str) -> None:
    section, _, name = field.rpartition(".")
    path = tmp_path / "beam.toml"
    path.write_text(f"[{section}]\n{name} = {value}\n")
    with pytest.raises(BeamError) as caught:
        EmbeddedConfig.load(path)
    assert field in caught.value.message or "Exceeds the limit" in str(caught.value.cause)
    assert len(str(caught.value)) < 1000
