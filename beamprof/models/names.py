"""Names of models as people write them: what changes no shape, and what was probably meant."""

import difflib
import re
from collections.abc import Mapping

# What finetuning and packaging add to a name; shapes do not follow it. A whole version is another
# model (DeepSeek-V2), one below 1 an edition of the same (Mistral 7B v0.3).
SUFFIXES = r"-(instruct|chat|base|it|hf|thinking|\d{4}|v0\.\d+)$"

# What a name says of the formats that weights are in.
FORMATS = (
    r"-(awq|gptq|gguf|bnb|hqq|exl2|mlx|quantized|autoround|(nv|mx)?fp[48](-(block|dynamic))?"
    r"|int[348]|[348]-?bit|w[0-9]+a[0-9]+|nf4|q[2-8](-k(-[sml])?)?)(?=-|$)"
)
ALIKE = 0.75


def letters(name: str) -> str:
    """A name without what does not change a shape: case, dashes, finetuning's suffixes."""
    return re.sub(r"[^a-z0-9.]", "", _bare(name))


def _bare(name: str) -> str:
    name = name.lower().replace("_", "-")
    while (shorter := re.sub(SUFFIXES, "", name)) != name:
        name = shorter
    return name.removeprefix("meta-")


def meant(model: str, names: Mapping[str, str]) -> str:
    """A hint at the model that was meant: one of a slip in its name, or one in other formats.

    Where more than a slip differs it is another model, however alike the names are.

    Args:
        model: as somebody wrote it.
        names: every way to write a model's name, in lower case, and what the registry calls it.
    """
    name = model.strip().lower().rpartition("/")[2].replace("_", "-")
    bare = re.sub(FORMATS, "", name)
    if bare != name:
        same = {letters(written): ours for written, ours in names.items()}.get(letters(bare))
        return f"{same} is that model in other formats; " if same else ""
    words, numbers = _parts(bare)
    split = {written: _parts(written) for written in names}
    known = {written: theirs for written, (others, theirs) in split.items() if _near(words, others)}
    for fits in (_equal, _left_off, _wrong_digit):
        alike = [written for written, others in known.items() if fits(numbers, others)]
        close = difflib.get_close_matches(name, alike, n=1, cutoff=0.0)
        if close:
            return f"did you mean {names[close[0]]}? "
    return ""


def _parts(name: str) -> tuple[str, list[str]]:
    """The letters of a name, which are mistyped, and its numbers, which tell models apart."""
    core = re.sub(r"(?<=[0-9])b(?![a-z])", "", _bare(name.rpartition("/")[2]))
    return re.sub(r"[^a-z]", "", core), re.findall(r"[0-9]+(?:\.[0-9]+)?", core)


def _near(words: str, others: str) -> bool:
    """Whether one is a slip of the other: another word makes another model (lite, distill)."""
    ratio = difflib.SequenceMatcher(None, words, others).ratio()
    return ratio >= ALIKE and abs(len(words) - len(others)) <= 1


def _equal(numbers: list[str], others: list[str]) -> bool:
    return numbers == others


def _left_off(numbers: list[str], others: list[str]) -> bool:
    return numbers == others[: len(numbers)]


def _wrong_digit(numbers: list[str], others: list[str]) -> bool:
    """In a size; another version (4.5, v3) is another model."""
    wrong = [pair for pair in zip(numbers, others, strict=False) if pair[0] != pair[1]]
    sizes = all(one.isdigit() and len(one) == len(other) > 1 for one, other in wrong)
    return len(numbers) == len(others) and len(wrong) == 1 and sizes
