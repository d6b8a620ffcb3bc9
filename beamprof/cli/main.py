"""`beam`: the command line. Finds the command, and turns what goes wrong into words and a code.

    0    done
    1    the answer is no, or the work is incomplete
    2    bad input or environment
    130  interrupted
    70   a bug in BEAM: the traceback is saved and its path printed

Heavy imports live inside the commands, so that `beam --help` stays quick.
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import beamprof
from beam_runtime.errors import BeamError
from beamprof.cli import decide, doctor, profile, replay, report, study, sweep, table, trace

DONE, BAD_INPUT, INTERRUPTED, BUG = 0, 2, 130, 70

app = typer.Typer(
    name="beam",
    help="BEAM cuts the energy of LLM serving without breaking its latency promises.\n\n"
    "Start here, with or without a GPU:  beam profile --model llama3-70b --tp 2 --pp 4",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: quicker, and [default: 1] is not taken for markup
)
app.command("profile")(profile.command)
app.add_typer(table.app, name="table")
app.add_typer(sweep.app, name="sweep")
app.add_typer(trace.app, name="trace")
app.command("replay")(replay.command)
app.command("study")(study.command)
app.command("report")(report.command)
app.command("decide")(decide.command)
app.command("doctor")(doctor.command)


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
    debug = "--debug" in arguments
    as_json = "--json" in arguments
    words = [argument for argument in arguments if argument != "--debug"]
    try:
        code = typer.main.get_command(app).main(
            args=words, prog_name="beam", standalone_mode=False, obj=words
        )
    except BeamError as error:
        return _failed(error, as_json=as_json, debug=debug)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        # Wrong options. Their class is click's, which newer typers carry inside themselves.
        if hasattr(error, "format_message"):
            return _misused(error, as_json=as_json)
        return _broken(debug=debug)
    return code if isinstance(code, int) else DONE


def _failed(error: BeamError, *, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _say("error", error.message, error.cause, error.hint, as_json=as_json)
    return error.exit_code


def _misused(error: Exception, *, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "beam"
    message: str = error.format_message()  # type: ignore[attr-defined]
    if context is not None and message == context.get_help():
        sys.stderr.write(message + "\n")  # a noun without a verb: its help is the answer
    elif message:
        _say("error", message, None, f"see: {command} --help", as_json=as_json)
    return BAD_INPUT


def _broken(*, debug: bool) -> int:
    text = traceback.format_exc()
    if debug:
        sys.stderr.write(text)
    with tempfile.NamedTemporaryFile(
        "w", prefix="beam-bug-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    sys.stderr.write(
        f"error: BEAM has a bug: {text.strip().splitlines()[-1]}\n"
        f"cause: the traceback is in {file.name}\n"
        "hint: please report it together with the command line\n"
    )
    return BUG


def _say(status: str, message: str, cause: str | None, hint: str | None, *, as_json: bool) -> None:
    for label, text in ((status, message), ("cause", cause), ("hint", hint)):
        if text:
            sys.stderr.write(f"{label}: {text}\n")
    if as_json:
        from beamprof.console import JSON_SCHEMA

        answer: dict[str, object] = {
            "schema": JSON_SCHEMA,
            "command": None,
            "status": status,
            "data": {"message": message, "cause": cause, "hint": hint},
            "warnings": [],
        }
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
