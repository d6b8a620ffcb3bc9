"""BEAM's offline half: profile, inspect, replay, advise. The CLI is ``beam``.

Every command as a function, found on first use, so that ``import beamprof`` loads nothing:

    table = beamprof.load_table("70b.parquet")
    advice = beamprof.advise(table, beamprof.load_from_rate(2.0, 1000, 200))
    beamprof.frame(advice)  # its rows, as polars

Where a command is also the name of a folder of code, the function has a longer one:
``replay_trace``, ``decide_state``, ``run_study``, ``diagnose``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from beamprof.version import __version__ as __version__

if TYPE_CHECKING:
    from beam_runtime.table.perf_table import PerfTable
    from beam_runtime.types import Slo
    from beamprof.advice.advise import Advice, Today, advise
    from beamprof.advice.load import Load, load_from_rate, load_from_scrape
    from beamprof.advice.modelled import modelled_table
    from beamprof.advice.scrape import read_scrape
    from beamprof.decide.decide import decide as decide_state
    from beamprof.decide.engine_state import state_of
    from beamprof.doctor.diagnose import diagnose
    from beamprof.frames import frame, load_table
    from beamprof.profiler.dry_run import dry_run
    from beamprof.profiler.profile import ProfileRequest, profile
    from beamprof.profiler.spec import resolve_spec
    from beamprof.replay.ladder import replay as replay_trace
    from beamprof.replay.options import ReplayOptions
    from beamprof.replay.saved import load_replay
    from beamprof.replay.study import study as run_study
    from beamprof.report.html_report import write_report
    from beamprof.tables.check import check_table
    from beamprof.tables.compare import compare_tables
    from beamprof.tables.export import export_table
    from beamprof.tables.importing import import_table
    from beamprof.tables.inspect import inspect_table
    from beamprof.tables.lookup import lookup_step
    from beamprof.tables.merge import merge_tables
    from beamprof.traces.importing import import_trace, open_trace
    from beamprof.traces.statistics import trace_statistics
    from beamprof.traces.trace_file import save_trace

# Where each name lies; after a colon, what it is called there.
_HOME = {
    "Advice": "beamprof.advice.advise",
    "Load": "beamprof.advice.load",
    "PerfTable": "beam_runtime.table.perf_table",
    "ProfileRequest": "beamprof.profiler.profile",
    "ReplayOptions": "beamprof.replay.options",
    "Slo": "beam_runtime.types",
    "Today": "beamprof.advice.advise",
    "advise": "beamprof.advice.advise",
    "check_table": "beamprof.tables.check",
    "compare_tables": "beamprof.tables.compare",
    "decide_state": "beamprof.decide.decide:decide",
    "diagnose": "beamprof.doctor.diagnose",
    "dry_run": "beamprof.profiler.dry_run",
    "export_table": "beamprof.tables.export",
    "frame": "beamprof.frames",
    "import_table": "beamprof.tables.importing",
    "import_trace": "beamprof.traces.importing",
    "inspect_table": "beamprof.tables.inspect",
    "load_from_rate": "beamprof.advice.load",
    "load_from_scrape": "beamprof.advice.load",
    "load_replay": "beamprof.replay.saved",
    "load_table": "beamprof.frames",
    "lookup_step": "beamprof.tables.lookup",
    "merge_tables": "beamprof.tables.merge",
    "modelled_table": "beamprof.advice.modelled",
    "open_trace": "beamprof.traces.importing",
    "profile": "beamprof.profiler.profile",
    "read_scrape": "beamprof.advice.scrape",
    "replay_trace": "beamprof.replay.ladder:replay",
    "resolve_spec": "beamprof.profiler.spec",
    "run_study": "beamprof.replay.study:study",
    "save_trace": "beamprof.traces.trace_file",
    "state_of": "beamprof.decide.engine_state",
    "trace_statistics": "beamprof.traces.statistics",
    "write_report": "beamprof.report.html_report",
}

__all__ = [
    "Advice",
    "Load",
    "PerfTable",
    "ProfileRequest",
    "ReplayOptions",
    "Slo",
    "Today",
    "advise",
    "check_table",
    "compare_tables",
    "decide_state",
    "diagnose",
    "dry_run",
    "export_table",
    "frame",
    "import_table",
    "import_trace",
    "inspect_table",
    "load_from_rate",
    "load_from_scrape",
    "load_replay",
    "load_table",
    "lookup_step",
    "merge_tables",
    "modelled_table",
    "open_trace",
    "profile",
    "read_scrape",
    "replay_trace",
    "resolve_spec",
    "run_study",
    "save_trace",
    "state_of",
    "trace_statistics",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'beamprof' has no attribute {name!r}")
    module, _, there = _HOME[name].partition(":")
    found = getattr(import_module(module), there or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
