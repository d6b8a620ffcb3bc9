"""A diagnosis as people see it."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beamprof.doctor.checks import Check
from beamprof.doctor.diagnose import Diagnosis
from beamprof.report.page import block, fitted_block, heading, next_command, plain_table, sentence


def printable(text: str) -> Text:
    """What others wrote, without control characters, and not as markup."""
    return Text("".join(one if one.isprintable() else "?" for one in text))


def show_diagnosis(found: Diagnosis, console: Console) -> None:
    """`beam doctor`."""
    sentence(console, _verdict(found))
    facts = plain_table()
    facts.show_header = False
    facts.add_row("python", f"{found.python} on {found.system}")
    versions = [f"{name} {version or '-'}" for name, version in found.packages.items()]
    facts.add_row("packages", ", ".join(versions))
    facts.add_row("driver", found.driver or "none")
    facts.add_row("clocks", printable(found.clocks))
    own = [found.user_file or "no ~/.config/beam/config.toml", *found.variables]
    facts.add_row("settings", printable(", ".join(own)))
    if not found.locks and not found.record_error:
        facts.add_row("locks", "none on record: BEAM left no GPU locked")
    block(console, facts)
    heading(console, "GPUs")
    if found.gpus:
        fitted_block(console, _gpus(found), ("UUID", "PCI", "counter", "power W"))
    else:
        block(console, Text(f"none: {found.no_gpus}"))
    heading(console, "Could BEAM control this machine?", "" if found.controls else "no")
    block(console, _checks(found.checks))
    if found.config is not None:
        heading(
            console, found.config, "" if found.serves else "no engine should be started with it"
        )
        block(console, _checks(found.config_checks))
    if found.locks or found.record_error:
        heading(console, "Locks on record", found.record_error or found.record)
        block(console, _locks(found))
    orphaned = any(lock.state == "orphaned" for lock in found.locks)
    following = "beam doctor --restore" if orphaned else "beam profile --model llama3-70b --dry-run"
    next_command(console, following)


def _verdict(found: Diagnosis) -> str:
    states = [lock.state for lock in found.locks]
    sick = [str(gpu.index) for gpu in found.gpus if gpu.sick]
    setting = "and may set their clocks" if found.may_lock else "but may not set clocks itself"
    verdicts = (
        (bool(found.record_error), "The record of locks cannot be read."),
        ("stuck" in states, "A GPU is left locked and could not be released."),
        ("orphaned" in states, "A GPU is left locked by a process that is dead."),
        ("released" in states, "What was left locked has been released."),
        (bool(sick), f"GPU {', '.join(sick)} is sick; the others are shown beside."),
        (
            not found.gpus,
            "No GPU here: tables are modelled from device files, clocks are left alone.",
        ),
    )
    seen = f"{len(found.gpus)} GPU{'s' * (len(found.gpus) > 1)}"
    return next((text for holds, text in verdicts if holds), f"This user sees {seen} {setting}.")


def _gpus(found: Diagnosis) -> Table:
    table = plain_table()
    for title in ("GPU", "name", "clock MHz", "offered MHz", "power W", "counter", "PCI", "UUID"):
        words = title in ("name", "counter", "PCI", "UUID")
        table.add_column(title, justify="left" if words else "right", no_wrap=True)
    for gpu in found.gpus:
        offered = f"{gpu.lowest_mhz} to {gpu.highest_mhz} ({gpu.clocks})" if gpu.clocks else "-"
        tick = gpu.energy if gpu.tick_ms is None else f"every {gpu.tick_ms:.0f} ms"
        power = "-" if gpu.power_w is None else f"{gpu.power_w:.0f}"
        limit = "" if gpu.power_limit_w is None else f" of {gpu.power_limit_w:.0f}"
        table.add_row(
            str(gpu.index),
            printable(gpu.name or "-"),
            "-" if gpu.clock_mhz is None else str(gpu.clock_mhz),
            offered,
            power + limit,
            printable("sick" if gpu.sick else tick),
            printable(gpu.pci_address or "-"),
            printable(gpu.uuid or "-"),
        )
    return table


def _checks(checks: Sequence[Check]) -> Table:
    table = plain_table(("", "what"))
    table.add_column("found, and what helps", overflow="fold")
    for check in checks:
        mark = {True: "ok", False: "NO", None: "note"}[check.ok]
        table.add_row(mark, check.name, printable(check.found))
        if check.remedy:
            table.add_row("", "", printable(f"-> {check.remedy}"))
    return table


def _locks(found: Diagnosis) -> Table:
    table = plain_table()
    for title in ("state", "clock MHz", "process", "GPUs"):
        table.add_column(title)
    for lock in found.locks:
        clock = "not locked" if lock.clock_mhz is None else str(lock.clock_mhz)
        state = f"{lock.state}: {lock.error}" if lock.error else lock.state
        who = f"{lock.pid} of {lock.host}" if lock.host else str(lock.pid)
        table.add_row(printable(state), clock, printable(who), printable(", ".join(lock.gpus)))
    return table
