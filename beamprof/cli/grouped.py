"""Help with its options in groups: what to work on, what to assume, what to write."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer.core

_REST = "Options"


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
