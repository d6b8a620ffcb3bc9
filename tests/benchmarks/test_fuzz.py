"""The fuzz reaches its readers and counts what escapes; here nothing does."""

import importlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest
from fuzzing.damage import damaged
from fuzzing.promise import RaisedError, must_not_raise

from beam_runtime.errors import BeamError

INPUTS = 60
# These compile the search, or fork servers: benchmarks/fuzz.py has them in processes of their own.
HERE = sorted(set(fuzz.READERS) - {"hooks.hooks", "readers.decision_logs", "readers.names"})


def reader(name: str, folder: Path) -> Callable[[random.Random], object]:
    module, _, function = name.partition(".")
    opened: Callable[[random.Random], object]
    opened = getattr(importlib.import_module(f"fuzzing.{module}"), function)(folder)
    return opened


@pytest.mark.parametrize("name", HERE)
def test_nothing_escapes(name: str, tmp_path: Path) -> None:
    read, came = reader(name, tmp_path), Counter[bool]()
    for number in range(INPUTS):
        try:
            read(random.Random(f"test:{number}"))
        except BeamError:
            came[False] += 1
        else:
            came[True] += 1
    assert came[True], "some are harmless: what lies behind the first check is reached, too"


def test_an_input_is_made_of_its_number_alone() -> None:
    whole = b'{"a": 1, "b": [2.5, "text"]}\nsecond = "line"\n'
    made = [damaged(whole, random.Random(number)) for number in range(200)]
    assert made == [damaged(whole, random.Random(number)) for number in range(200)]
    assert len(set(made)) > 150


def test_a_broken_promise_is_an_escape_whatever_was_raised() -> None:
    def breaks() -> None:
        raise BeamError("an answer elsewhere")

    with pytest.raises(RaisedError, match="an answer elsewhere"):
        must_not_raise(breaks)
    assert must_not_raise(lambda: 5) == 5


def test_escapes_and_deaths_are_counted(tmp_path: Path) -> None:
    """A reader of its own, which does all of it."""
    (tmp_path / "fuzzing").mkdir()
    (tmp_path / "fuzzing" / "sick.py").write_text(
        "import os, time\n"
        "from beam_runtime.errors import BeamError\n"
        "def reader(folder):\n"
        "    def once(moments):\n"
        "        roll = moments.random()\n"
        "        if roll < 0.3: raise BeamError('refused')\n"
        "        if roll < 0.6: raise KeyError('escaped')\n"
        "        if roll < 0.7: os._exit(3)\n"
        "    return once\n"
    )
    script = tmp_path / "fuzz.py"
    text = Path(fuzz.__file__).read_text(encoding="utf-8")
    script.write_text(text.replace("READERS = {", 'READERS = {"sick.reader": 1,', 1))
    said = subprocess.run(
        [sys.executable, str(script), "--json", "--seed", "5", "--count", "40",
         "--only", "sick.reader"], capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    answer = json.loads(said)
    found = answer["readers"]["sick.reader"]
    rolls = [fuzz.moments_of("sick.reader", 5, number).random() for number in range(40)]
    assert found["refused"] == sum(roll < 0.3 for roll in rolls)
    deaths = sum(0.6 <= roll < 0.7 for roll in rolls)
    escapes = sum(0.3 <= roll < 0.6 for roll in rolls)
    assert deaths and escapes
    assert found["escapes"].pop("the process ended with 3") == deaths
    ((kind, often),) = found["escapes"].items()
    assert kind.startswith("KeyError at ") and kind.endswith("fuzzing/sick.py:7")
    assert often == escapes
    assert answer["total"]["escapes"] == deaths + escapes
    assert answer["total"]["inputs"] == 40
    assert found["hangs"] == []
