"""`beam`: the command line. Finds the command, and turns what goes wrong into words and a code.

    0    done
    1    the answer is no, or the work is incomplete
    2    bad input or environment
    130  interrupted
    141  the reader of the output has gone (head, less)
    70   a bug in BEAM: the traceback is saved and its path printed

Heavy imports live inside the commands, so that `beam --help` stays quick.
"""

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Annotated, Any

import typer

import beamprof
from beam_runtime.errors import BeamError
from beamprof.cli import advise, decide, doctor, profile, replay, report, study, sweep, table, trace
from beamprof.cli.grouped import Examples, grouped
from beamprof.cli.wording import in_our_words

DONE, BAD_INPUT, INTERRUPTED, BUG, READER_GONE = 0, 2, 130, 70, 141

app = typer.Typer(
    name="beam",
    cls=Examples,
    help="BEAM cuts the energy of LLM serving without breaking its latency promises.\n\n"
    "\b\nStart here, with or without a GPU:\n"
    "  beam profile --model llama3-70b --tp 2 --pp 4\n\n"
    "Tab completes commands and flags after:  beam --install-completion",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: quicker, and [default: 1] is not taken for markup
)
app.command("profile", cls=grouped(profile.GROUPS))(profile.command)
app.add_typer(
    table.app, name="table", short_help="Inspect, check, merge, export, import perf-energy tables."
)
app.add_typer(
    sweep.app, name="sweep", short_help="Show where a sweep's values come from; begin one."
)
app.add_typer(trace.app, name="trace")
app.command(
    "advise", cls=grouped(advise.GROUPS), short_help="What would I save, and what do I have to do?"
)(advise.command)
app.command(
    "replay", cls=grouped(replay.GROUPS), short_help="Play a trace under several policies."
)(replay.command)
app.command(
    "study", cls=grouped(study.GROUPS), short_help="Play a grid of tables, traces, SLOs, policies."
)(study.command)
app.command("report", short_help="One HTML page of a replay, a study or a decision log.")(
    report.command
)
app.command(
    "decide", cls=grouped(decide.GROUPS), short_help="What would the controller do in this state?"
)(decide.command)
app.command("doctor", short_help="Could BEAM control this machine? Is a GPU left locked?")(
    doctor.command
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"beam {beamprof.__version__}")
        raise typer.Exit


@app.callback()
def _beam(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")
    ] = False,
) -> None:
    del version, debug  # --version has been answered; --debug is read by main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; never raises.

    Args:
        argv: arguments without the program's name; None = those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    run = _Run(
        debug="--debug" in arguments,
        as_json="--json" in arguments,
        words=[argument for argument in arguments if argument != "--debug"],
    )
    _open_closed()
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no text
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _guarded(run)
    except BrokenPipeError:
        return _reader_gone()
    except KeyboardInterrupt:
        return INTERRUPTED


def _open_closed() -> None:
    """Streams that the caller has closed (``>&-``) lead nowhere, instead of being None."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDONLY if name == "stdin" else os.O_WRONLY)
            setattr(sys, name, os.fdopen(nowhere, "r" if name == "stdin" else "w"))


@dataclass(frozen=True, slots=True)
class _Run:
    """A command line: its words without --debug, and what they say of how to answer."""

    words: list[str]
    debug: bool
    as_json: bool

    @property
    def command(self) -> str | None:
        """The command's words as JSON names them, e.g. ``table inspect``."""
        place: Any = typer.main.get_command(app)
        names = []
        for word in self.words:
            place = getattr(place, "commands", {}).get(word)
            if place is None:
                break
            names.append(word)
        return " ".join(names) or None


def _guarded(run: _Run) -> int:
    try:
        code = _invoked(run)
        sys.stdout.flush()
    except BeamError as error:
        if run.debug:
            traceback.print_exc()
        _say(run, "error", error.message, error.cause, error.hint)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort) as stopped:
        words = str(stopped) or "nothing was written; run the same command again"
        _say(run, "interrupted", words)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        # Wrong options. Their class is click's, which newer typers carry inside themselves.
        if hasattr(error, "format_message"):
            return _misused(run, error)
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _SURROUNDINGS:
            return _surroundings(run, error)
        return _broken(run)
    return code


def _invoked(run: _Run) -> int:
    """Run the command; its exceptions come out as they are.

    Not by the command's own main(): newer typers turn an interrupt into a bare exit there, and
    what it had to say is lost.
    """
    command: Any = typer.main.get_command(app)
    complete = getattr(command, "_main_shell_completion", None)
    if complete is not None:
        complete({}, "beam", None)
    try:
        with command.make_context("beam", list(run.words), obj=run.words) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return DONE


# What the machine lacks, wherever it shows: no fault of BEAM's, nor of what was typed.
_SURROUNDINGS = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG,
})  # fmt: skip


def _surroundings(run: _Run, error: Exception) -> int:
    if run.debug:
        traceback.print_exc()
    name = getattr(error, "filename", None)
    where = f" ({name})" if name else ""
    if isinstance(error, MemoryError):
        message, hint = "there is not enough memory for this", "ask for less at a time"
    else:
        message = f"the machine refused{where}: {getattr(error, 'strerror', None) or error}"
        hint = "see to that, then run the same command again; nothing was overwritten"
    with contextlib.suppress(OSError):  # stdout itself may be what is full
        _say(run, "error", message, None, hint)
    _drop_stdout()
    return BAD_INPUT


def _reader_gone() -> int:
    """The reader (head, less) has gone: end as other tools do, without a word."""
    _drop_stdout()
    return READER_GONE


def _drop_stdout() -> None:
    # What is still buffered would make the interpreter complain at its exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _misused(run: _Run, error: Exception) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "beam"
    message: str = error.format_message()  # type: ignore[attr-defined]
    message = in_our_words(message, run.words)
    if context is not None and message == context.get_help():
        sys.stderr.write(message + "\n")  # a noun without a verb: its help is the answer
        if run.as_json:
            _say_json(run, "error", f"{command} needs a command", None, f"see: {command} --help")
    elif message:
        _say(run, "error", message, None, f"see: {command} --help")
    return BAD_INPUT


def _broken(run: _Run) -> int:
    text = traceback.format_exc()
    if run.debug:
        sys.stderr.write(text)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="beam-bug-", suffix=".txt", delete=False, encoding="utf-8",
            errors="backslashreplace",
        ) as file:  # fmt: skip
            file.write(text)
        cause = f"the traceback is in {file.name}"
    except OSError:
        cause = f"the traceback: {text}"
    last = text.strip().splitlines()[-1]
    hint = "please report it together with the command line"
    _say(run, "bug", f"BEAM has a bug: {last}", cause, hint)
    return BUG


def _say(
    run: _Run, status: str, message: str, cause: str | None = None, hint: str | None = None
) -> None:
    from beam_runtime.printable import printable

    label = "interrupted" if status == "interrupted" else "error"
    for name, text in ((label, message), ("cause", cause), ("hint", hint)):
        if text:
            sys.stderr.write(f"{name}: {printable(text)}\n")
    if run.as_json:
        _say_json(run, status, message, cause, hint)


def _say_json(run: _Run, status: str, message: str, cause: str | None, hint: str | None) -> None:
    from beamprof.console import write_json

    write_json(run.command, status, {"message": message, "cause": cause, "hint": hint})
    sys.stdout.flush()
