"""The schema's records are what the documentation says."""

from pathlib import Path

import pytest

from beam_runtime.table.schema import COLUMNS, KEY_COLUMNS, METADATA_KEYS, REQUIRED_METADATA

DOCS = Path(__file__).parents[3] / "docs" / "table.md"


def test_documentation_lists_every_column_and_key_as_it_is():
    if not DOCS.is_file():
        pytest.skip("docs/ is not beside the tests")
    lines = DOCS.read_text("utf-8").splitlines()
    for column in COLUMNS:
        may_be_empty = " (may be empty)" if column.nullable else ""
        row = f"| `{column.name}` | {column.dtype} | {column.unit or '-'} | {column.doc}"
        assert f"{row}{may_be_empty} |" in lines
    for key, meaning in METADATA_KEYS.items():
        assert f"| `beam.{key}` | {meaning.replace('|', 'or')} |" in lines


def test_names_end_in_their_unit():
    endings = {"MHz": "_mhz", "ms": "_ms", "J": "_j", "°C": "_c", "tokens": "_tokens"}
    for column in COLUMNS:
        if column.unit in endings:
            assert column.name.endswith(endings[column.unit])


def test_keys_are_columns_and_required_metadata_is_known():
    assert KEY_COLUMNS[0] == "kind"
    assert set(REQUIRED_METADATA) <= set(METADATA_KEYS)
