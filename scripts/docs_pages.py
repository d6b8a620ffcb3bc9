"""The pages under reference/, made from the code when the site is built (a hook of mkdocs).

commands    from the command line's own help
beam.toml   from the reader's docstring and fields
traces      from the list of importers
support     from the model registry, the device files and the package's requirements
"""

import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import requires
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from beam_runtime.engines import config as beam_toml
from beamprof.cli.main import app
from beamprof.devices.device import device_names, resolve_device
from beamprof.models.families import ARCHITECTURES, REFUSED
from beamprof.models.registry import entries, registry
from beamprof.traces.importers.own_columns import ARRIVALS
from beamprof.traces.importers.registry import IMPORTERS

NOTE = "\n*Made from the code when this page was built.*\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the made pages to those that are written."""
    for name, page in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def commands() -> str:
    """Every command's help, word for word."""
    parts = ["# Commands", NOTE]
    for name, text in _helps(typer.main.get_command(app), "beam"):
        parts += [f"## {name}", "", "```text", text.strip(), "```", ""]
    return "\n".join(parts)


def _helps(command: Any, path: str) -> Iterator[tuple[str, str]]:
    context = command.context_class(
        command, info_name=path, help_option_names=["-h", "--help"], max_content_width=100
    )
    context.terminal_width = 100
    yield path, command.get_help(context)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _helps(inner, f"{path} {name}")


def beam_toml_page() -> str:
    """What the reader of beam.toml says of itself."""
    head, *blocks = (inspect.getdoc(beam_toml) or "").split("\n\n")
    example = [block for block in blocks if "=" in block and block.startswith("    ")]
    words = [block for block in blocks if block not in example]
    fields = (inspect.getdoc(beam_toml.EmbeddedConfig) or "").partition("Attributes:")[2]
    rows = "\n".join(line.strip() for line in fields.strip().splitlines())
    toml = "\n\n".join(inspect.cleandoc(f"\n{block}") for block in example)
    return (
        f"# beam.toml\n{NOTE}\n{head}\n\n```toml\n{toml}\n```\n\n"
        + "\n\n".join(words)
        + f"\n\n## What becomes of it\n\n```text\n{rows}\n```\n\n"
        + "More on each field: [BEAM in vLLM](../vllm.md#the-file-field-by-field).\n"
    )


def traces() -> str:
    """Which files of requests are understood."""
    rows = [f"| `{one.name}` | {one.title} | {_cell(str(one.columns))} |" for one in IMPORTERS]
    names = ", ".join(f"`{name}`" for name in ARRIVALS)
    return (
        f"# Trace formats\n{NOTE}\nEvery command that takes a trace takes any of these, as CSV, "
        "JSON, JSON lines or Parquet, compressed or not, `-` for standard input. The format is "
        "found by the columns; what stands in brackets may be missing.\n\n"
        "| `--format` | what it is | columns |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "## How rows are read\n\n"
        "- **Times** are numbers, whose unit the name or the format states or the size proves (a "
        "Unix time of 2000 to 2100), or dates with the year first "
        "(`2024-05-10 14:00:00.25+02:00`). Where nothing tells the unit it is asked for: "
        "`--time-unit ms`. Dates, Unix times and logs count from the first request.\n"
        f"- **Rows of your own** (`jsonl`) may call their arrival {names}.\n"
        "- **A row that is no request** (no number, a negative time, no tokens) is refused with "
        "what the file says there; `--bad-rows drop` drops and counts such rows, `--sort` sorts "
        "and counts those whose times go back. Everything dropped is in the trace's record.\n"
        "- **Lengths without times** need `--rate 2`: Poisson arrivals.\n"
        "- **Text** is UTF-8, or UTF-16 as spreadsheets write it; blank lines before and behind "
        "the rows are passed over.\n\n"
        "## What a replay makes of them\n\n"
        "- **Prompts that begin alike** (`prefix_hashes`, `session_id`): played with vLLM's prefix "
        "cache, in blocks of 16 tokens; `--kv-blocks` says how many it has. "
        "`--no-prefix-cache` plays every prompt cold, and so does a trace that does not say which "
        "repeat; the line `plant:` says how many tokens that were.\n"
        "- **Promises of single requests** (`slo_ttft_ms`, and one of `slo_tbt_ms`, "
        "`slo_tpot_ms`, `slo_e2e_ms`): they stand in for `--slo-ttft` and its siblings where a "
        "row has one, for every policy and in goodput. (beam-paper and window-dvfs know one SLO "
        "for all, as published.)\n"
    )


def support() -> str:
    """Models, GPUs and packages, each with the error it states of itself."""
    models = "\n".join(
        f"| `{name}` | {entries()[name]['id']} | {shape.layers} | {shape.dtype} |"
        for name, shape in sorted(registry().items())
    )
    gpus = "\n".join(
        f"| `{name}` | {', '.join(device.nvml_names) or '-'} | {device.clocks.min_mhz}-"
        f"{device.clocks.max_mhz} MHz | {_cell(device.accuracy)} |"
        for name, device in ((name, resolve_device(name)) for name in device_names())
    )
    needs = "\n".join(
        f"- `{line}`" for line in (requires("beamprof") or []) if "extra ==" not in line
    )
    return (
        f"# Models, GPUs, versions\n{NOTE}\n"
        "## Models\n\n`--model` takes these names, their Hugging Face ids, or a directory with a "
        "config.json.\n\n| name | Hugging Face id | layers | weights |\n|---|---|---|---|\n"
        f"{models}\n\n{_architectures()}\n\n## GPUs\n\n"
        "Any NVIDIA GPU can be measured. These can be modelled without one; the error is what the "
        "device file states of itself.\n\n"
        "| `--device` | as the driver says it | clocks | error of the model |\n|---|---|---|---|\n"
        f"{gpus}\n\n## Packages\n\n{needs}\n\n"
        "For vLLM's versions see [BEAM in vLLM](../vllm.md).\n"
    )


def _architectures() -> str:
    """Which config.json files are understood, and what is in the way of some others."""
    known = ", ".join(f"`{name}`" for name in sorted(ARCHITECTURES))
    refused = "\n".join(f"| `{name}` | {what} |" for name, what in sorted(REFUSED.items()))
    return (
        "### Architectures\n\nA directory's config.json may name any of these, or hold one as the "
        f"text decoder of a multimodal model: {known}.\n\n"
        "Any other is refused by name, and so is a field that would change the cost and is not "
        "understood. What is in the way of some:\n\n"
        f"| architecture | not modelled |\n|---|---|\n{refused}\n\n"
        "Mamba-2 layers, Kimi's delta attention, short convolutions and heads of more than 256 "
        "numbers are modelled by what is nearest among the measured operators. Tables of such "
        "models say so wherever they are used."
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


PAGES: dict[str, Callable[[], str]] = {
    "cli": commands,
    "beam-toml": beam_toml_page,
    "traces": traces,
    "support": support,
}
