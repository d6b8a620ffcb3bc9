"""An engine's state as a person writes it, as flags or as JSON, made into a Snapshot.

--waiting 1500,300            two prompts have just come in
--running 32x1200,4x3000      36 requests decode over contexts of 1200 and 3000 tokens
--state state.json            the same and more:

{"waiting": [{"prompt_tokens": 1500, "waited_ms": 40, "slo": {"ttft_ms": 500}}],
 "running": [{"context_tokens": 1200, "since_token_ms": 15}],
 "clock_mhz": 1410, "free_blocks": 4096}
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from beam_runtime.types import EngineLimits, Knobs, RequestState, Slo, Snapshot
from beamprof.errors import StateError
from beamprof.files import read_text

_PLENTY_OF_BLOCKS = 1 << 30
_MOST_REQUESTS = 4096

Tokens = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Promise = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SloSpec(_Strict):
    """A request's own promises; what is left out is the default."""

    ttft_ms: Promise | None = None
    tbt_ms: Promise | None = None
    tpot_ms: Promise | None = None
    e2e_ms: Promise | None = None
    least_tokens_per_s: Promise | None = None
    max_slowdown: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] | None = None

    def over(self, default: Slo) -> Slo:
        """The default, with these in its place."""
        return default.revised(
            ttft_ms=self.ttft_ms, tbt_ms=self.tbt_ms, tpot_ms=self.tpot_ms, e2e_ms=self.e2e_ms,
            least_tokens_per_s=self.least_tokens_per_s, max_slowdown=self.max_slowdown,
        )  # fmt: skip


class WaitingSpec(_Strict):
    """A prompt that waits."""

    prompt_tokens: Tokens
    waited_ms: Milliseconds = 0.0
    cached_tokens: Annotated[int, Field(ge=0)] = 0
    slo: SloSpec = SloSpec()


class RunningSpec(_Strict):
    """A request that decodes."""

    context_tokens: Tokens
    since_token_ms: Milliseconds = 0.0
    slo: SloSpec = SloSpec()


class StateSpec(_Strict):
    """All of it."""

    waiting: tuple[WaitingSpec, ...] = ()
    running: tuple[RunningSpec, ...] = ()
    clock_mhz: Annotated[int, Field(ge=1)] | None = None
    free_blocks: Annotated[int, Field(ge=0)] = _PLENTY_OF_BLOCKS

    def snapshot(self, limits: EngineLimits, slo: Slo, clock_mhz: int) -> Snapshot:
        """The engine at this moment, nothing in flight.

        Args:
            limits: of the engine.
            slo: for what makes no promise of its own.
            clock_mhz: where the state does not tell.
        """
        return Snapshot(
            now_ms=0.0,
            limits=limits,
            knobs=Knobs(self.clock_mhz or clock_mhz, limits.max_batched_tokens),
            running=tuple(
                RequestState(
                    f"running{number}",
                    one.context_tokens,
                    arrival_ms=-one.since_token_ms,
                    slo=one.slo.over(slo),
                    computed_tokens=one.context_tokens,
                    generated_tokens=1,
                    first_token_ms=-one.since_token_ms,
                    last_token_ms=-one.since_token_ms,
                )
                for number, one in enumerate(self.running)
            ),
            waiting=tuple(
                RequestState(
                    f"waiting{number}",
                    one.prompt_tokens,
                    arrival_ms=-one.waited_ms,
                    slo=one.slo.over(slo),
                    cached_tokens=one.cached_tokens,
                )
                for number, one in enumerate(self.waiting)
            ),
            stage_free_ms=(0.0,) * limits.pp,
            free_blocks=self.free_blocks,
        )


# The objects of a state, and what people call them.
OBJECTS: tuple[tuple[type[BaseModel], str], ...] = (
    (StateSpec, "the state itself"),
    (WaitingSpec, 'an entry of "waiting"'),
    (RunningSpec, 'an entry of "running"'),
    (SloSpec, 'its "slo": {...}'),
)


def read_state(path: Path) -> StateSpec:
    """A state from a JSON file.

    Raises:
        StateError: no such file, no JSON, an unknown key or a value that cannot be.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise StateError(f"cannot read the state {path}", cause=error.strerror) from None
    except UnicodeDecodeError:
        raise StateError(f"the state {path} is not text", hint="a state is JSON") from None
    except ValueError as error:  # too large, or a NUL in its name
        raise StateError(f"cannot read the state {path}", cause=str(error)) from None
    try:
        return StateSpec.model_validate_json(text)
    except ValidationError as error:
        raise _explained(error, path) from None


def state_of(waiting: str, running: str) -> StateSpec:
    """A state from what was typed: ``1500,300`` and ``32x1200,4x3000``. Raises StateError."""
    return StateSpec(
        waiting=tuple(
            WaitingSpec(prompt_tokens=tokens) for tokens in _tokens(waiting, "--waiting")
        ),
        running=tuple(
            RunningSpec(context_tokens=tokens) for tokens in _tokens(running, "--running")
        ),
    )


def _tokens(text: str, flag: str) -> list[int]:
    tokens: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(?:([0-9]{1,18})\s*x\s*)?([0-9]{1,18})", part)
        times, size = (int(match.group(1) or 1), int(match.group(2))) if match else (0, 0)
        if times < 1 or size < 1:
            raise StateError(
                f"{flag}: expected tokens such as 1500 or 32x1200, found {part!r}",
                hint=f"for example {flag} 1500,300 or {flag} 32x1200",
            )
        if len(tokens) + times > _MOST_REQUESTS:
            raise StateError(f"{flag}: more than {_MOST_REQUESTS} requests")
        tokens += [size] * times
    return tokens


def _explained(error: ValidationError, path: Path) -> StateError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return StateError(f"{path} is not JSON", cause=str(first.get("ctx", {}).get("error", "")))
    if first["type"] != "extra_forbidden":
        expected = _expected(first["type"], first.get("ctx", {}))
        return StateError(f"{path}: {where or 'the whole'}: {expected}", cause=_found(first))
    *place, key = first["loc"]
    model, name = _object(place)
    homes = [f"{home} takes it" for one, home in OBJECTS if key in one.model_fields]
    near = difflib.get_close_matches(str(key), model.model_fields, n=1)
    hint = " and ".join(homes) or (f"did you mean {near[0]}?" if near else "")
    return StateError(
        f"{path}: unknown key {where}",
        cause=f"{name} takes {', '.join(sorted(model.model_fields))}",
        hint=hint or None,
    )


def _object(place: Sequence[str | int]) -> tuple[type[BaseModel], str]:
    """Which object stands at a place, and how to call it."""
    names = [part for part in place if isinstance(part, str)]
    if not names:
        return OBJECTS[0]
    if names[-1] == "slo":
        return OBJECTS[3]
    return OBJECTS[1] if names[0] == "waiting" else OBJECTS[2]


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    """What should have stood there, in our words."""
    bounds = {"greater_than_equal": ("ge", "{} or more"), "greater_than": ("gt", "more than {}")}
    if kind in bounds:
        key, words = bounds[kind]
        return f"expected {words.format(format(context.get(key, 0), 'g'))}"
    beginnings = {
        "missing": "it is missing",
        "int": "expected a whole number",
        "float": "expected a number",
        "finite": "expected a finite number",
        "tuple": "expected a list",
        "model": "expected an object",
        "dict": "expected an object",
    }
    found = (words for start, words in beginnings.items() if kind.startswith(start))
    return next(found, "this value cannot be used here")


def _found(error: Any) -> str | None:
    return None if error["type"] == "missing" else f"found {error['input']!a}"[:200]
