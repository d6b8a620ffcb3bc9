"""The console that everything is printed by: rich's, but for what words out of files may do."""

from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from beam_runtime.printable import printable


class _Printable(RenderHook):
    """Whatever is printed, words out of files among it, moves no cursor."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Words(one) for one in renderables]


class _Words:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            # A progress bar's own control codes are no words.
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class PrintedConsole(Console):
    """A Console whose words move no cursor, and that tells when its reader has gone.

    rich would exit by itself then, with 1.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.push_render_hook(_Printable())

    def on_broken_pipe(self) -> NoReturn:
        """Let the command line end as other tools do."""
        raise BrokenPipeError
