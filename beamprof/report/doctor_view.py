"""A diagnosis as people see it."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beamprof.doctor.diagnose import Diagnosis
from beamprof.report.page import block, heading, next_command, plain_table, sentence


def show_diagnosis(found: Diagnosis, console: Console) -> None:
    """`beam doctor`."""
    sentence(console, _verdict(found))
    facts = plain_table()
    facts.show_header = False
    facts.add_row("python", f"{found.python} on {found.system}")
    versions = [f"{name} {version or '-'}" for name, version in found.packages.items()]
    facts.add_row("packages", ", ".join(versions))
    facts.add_row("driver", found.driver or "none")
    facts.add_row("clocks", Text(found.clocks))
    if not found.locks and not found.record_error:
        facts.add_row("locks", "none on record: BEAM left no GPU locked")
    block(console, facts)
    heading(console, "GPUs")
    block(console, _gpus(found) if found.gpus else Text(f"none: {found.no_gpus}"))
    if found.locks or found.record_error:
        heading(console, "Locks on record", found.record_error)
        block(console, _locks(found))
    orphaned = any(lock.state == "orphaned" for lock in found.locks)
    following = "beam doctor --restore" if orphaned else "beam profile --model llama3-70b --dry-run"
    next_command(console, following)


def _verdict(found: Diagnosis) -> str:
    if found.record_error:
        return "The record of locks cannot be read."
    states = [lock.state for lock in found.locks]
    if "stuck" in states:
        return "A GPU is left locked and could not be released."
    if "orphaned" in states:
        return "A GPU is left locked by a process that is dead."
    if "released" in states:
        return "What was left locked has been released."
    if not found.gpus:
        return "No GPU here: tables are modelled from device files, clocks are left alone."
    setting = "and may set their clocks" if found.may_lock else "but may not set clocks itself"
    return f"This user sees {len(found.gpus)} GPU{'s' * (len(found.gpus) > 1)} {setting}."


def _gpus(found: Diagnosis) -> Table:
    table = plain_table()
    for title in ("GPU", "name", "clock MHz", "offered MHz", "power W", "UUID"):
        table.add_column(title, justify="left" if title in ("name", "UUID") else "right")
    for gpu in found.gpus:
        table.add_row(
            str(gpu.index),
            gpu.name,
            str(gpu.clock_mhz),
            f"{gpu.lowest_mhz} to {gpu.highest_mhz} ({gpu.clocks})",
            f"{gpu.power_w:.0f}",
            gpu.uuid,
        )
    return table


def _locks(found: Diagnosis) -> Table:
    table = plain_table()
    for title in ("state", "clock MHz", "process", "GPUs"):
        table.add_column(title)
    for lock in found.locks:
        clock = "not locked" if lock.clock_mhz is None else str(lock.clock_mhz)
        state = f"{lock.state}: {lock.error}" if lock.error else lock.state
        table.add_row(state, clock, str(lock.pid), ", ".join(lock.gpus))
    return table
