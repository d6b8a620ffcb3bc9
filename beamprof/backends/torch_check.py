"""Does the stage compute what it claims to? Asked once, on a dozen tokens, before any number.

A prompt in one pass must give the same as its first part, then a chunk over that context, then
the last token as a decode. A wrong mask, position or cache slot shows here; a wrong weight
layout does not (the tests hold that against transformers).
"""

import torch
from torch import Tensor

from beam_runtime.types import StepShape
from beamprof.backends.torch_pass import Stage
from beamprof.errors import BackendError

FIRST_TOKENS, CHUNK_TOKENS = 5, 6
PROMPT_TOKENS = FIRST_TOKENS + CHUNK_TOKENS + 1
# Rounding of the two ways differs; mistakes of position or mask come out above 0.1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}


def check_chunks(stage: Stage) -> None:
    """Compare one pass with three on random tokens.

    Raises:
        BackendError: they differ by more than rounding explains.
    """
    with torch.inference_mode():
        prompt = stage.random(PROMPT_TOKENS, stage.model.hidden_size)
        stage.ready(StepShape(PROMPT_TOKENS))  # from here on the cache keeps its place
        parts = _outputs(
            stage,
            prompt,
            (
                StepShape(FIRST_TOKENS),
                StepShape(CHUNK_TOKENS, FIRST_TOKENS),
                StepShape(0, 0, 1, PROMPT_TOKENS - 1),
            ),
        )
        # Last, so that the parts cannot find its keys and values in the cache.
        whole = _outputs(stage, prompt, (StepShape(PROMPT_TOKENS),))
    error = float((whole - parts).norm() / whole.norm())
    if not error <= TOLERANCE[stage.dtype]:  # NaN fails too
        raise BackendError(
            f"the stage fails its own check: a prompt in three parts differs by {error:.2g} from "
            f"the prompt in one pass (up to {TOLERANCE[stage.dtype]:g} is rounding)",
            cause=f"torch {torch.__version__} on {stage.device}, {stage.dtype}",
            hint="a kernel of this build computes wrongly: try another version of torch",
        )


def _outputs(stage: Stage, prompt: Tensor, steps: tuple[StepShape, ...]) -> Tensor:
    """What the layers add to the prompt's tokens, step after step over one cache."""
    added, begin = [], 0
    for step in steps:
        ready = stage.ready(step)
        end = begin + step.tokens
        ready.hidden.copy_(prompt[begin:end])
        added.append(ready.run() - prompt[begin:end])
        begin = end
    return torch.cat(added)
