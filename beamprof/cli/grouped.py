"""Help: options in groups (what to work on, what to assume, what to write), examples whole."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer.core

_REST = "Options"
_EXAMPLE = re.compile(r"(.+:)  ((?:\w+=\S+ )?beam .+)")


class Examples(typer.core.TyperGroup):
    """Commands whose examples stand on a line of their own, to be copied: never broken into two."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or None."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.help:
            command.help = with_examples(command.help)
        return command


def with_examples(text: str) -> str:
    """Help in which each `For example:  beam ...` has become two lines, kept as they are."""
    return "\n\n".join(
        _EXAMPLE.sub("\b\n\\1\n  \\2", part) if _EXAMPLE.fullmatch(part) else part
        for part in text.split("\n\n")
    )


def grouped(groups: Mapping[str, Sequence[str]]) -> type[typer.core.TyperCommand]:
    """A command whose help shows its options under these titles, the rest last.

    Args:
        groups: parameters' names by title, in the order of the help.
    """

    class Grouped(typer.core.TyperCommand):
        """Options under titles."""

        def format_options(self, ctx: Any, formatter: Any) -> None:
            """Write each group as a section."""
            title_of = {name: title for title, names in groups.items() for name in names}
            sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*groups, _REST)}
            for parameter in self.get_params(ctx):
                record = parameter.get_help_record(ctx)
                if record is not None and parameter.param_type_name == "option":
                    sections[title_of.get(str(parameter.name), _REST)].append(record)
            for title, records in sections.items():
                if records:
                    with formatter.section(title):
                        formatter.write_dl(records)

    return Grouped
