"""The command that measures a table like another: hints name it whole, so that it can be typed."""

import json
from collections.abc import Mapping
from shlex import quote


def profile_command(metadata: Mapping[str, str], **changed: object) -> str:
    """``beam profile`` for a table of this metadata, but with other model, tp, pp or device.

    A changed model is profiled in its own formats; the table's own in the table's.
    """
    wanted = {**metadata, **{key: str(value) for key, value in changed.items() if value}}
    flags = [f"--{key} {quote(wanted[key])}" for key in ("model", "device", "tp", "pp")]
    flags += [f"--{key} {count}" for key in ("ep", "dp") if (count := wanted.get(key, "")) > "1"]
    if not changed.get("model"):
        flags += _formats(metadata)
    return f"beam profile {' '.join(flags)}"


def _formats(metadata: Mapping[str, str]) -> list[str]:
    """Flags for what is not in bfloat16 and not the checkpoint's own doing."""
    dtype = metadata.get("dtype") or "bfloat16"
    try:
        kept = json.loads(metadata.get("model_shape") or "{}").get("precision", {}).get("kv", dtype)
    except (ValueError, AttributeError, RecursionError):  # somebody else's
        kept = dtype
    flags = [] if dtype == "bfloat16" else [f"--dtype {quote(dtype)}"]
    return flags if kept == dtype else [*flags, f"--kv-cache-dtype {quote(str(kept))}"]
