"""Patterns of module names, as lists in a quantization_config have them."""

import fnmatch
import re
from collections.abc import Callable, Iterable

from beamprof.errors import ModelShapeError

EVERYTHING = "re:.*"
KINDS = ("Linear", "FusedMoE", "RoutedExperts")  # names of classes: all that is quantised


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a module's full name is meant by any of the patterns.

    Engines take them as regular expressions (re:), globs, full names, or parts of names.

    Raises:
        ModelShapeError: a regular expression that is none.
    """
    expressions, words = [], []
    for pattern in patterns:
        if pattern in KINDS:
            expressions.append(re.compile(""))
        elif pattern.startswith("re:"):
            expressions.append(_compiled(pattern))
        else:
            bare = pattern.removeprefix("language_model.").replace(
                "model.language_model.", "model."
            )
            bare = re.sub(r"^backbone\.", "model.", bare)  # Nemotron-H's checkpoints
            if "*" in bare:
                expressions += [
                    re.compile(fnmatch.translate(glob)) for glob in (bare, f"model.{bare}")
                ]
            else:
                words.append(f".{bare}.")

    def matches(name: str) -> bool:
        dotted = f".{name}."
        return any(word in dotted for word in words) or any(e.match(name) for e in expressions)

    return matches


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix("re:"))
    except re.error:
        raise ModelShapeError(
            f"quantization_config: {pattern!r} is no regular expression"
        ) from None
