"""How long a request may be for the model that a table describes."""

from beam_runtime.table.perf_table import PerfTable
from beamprof.models.registry import registry, registry_name


def longest_request(table: PerfTable) -> int | None:
    """Most input + output tokens of the table's model; None where nobody knows.

    The table's own shape comes first: whoever profiled a folder may have made a context longer.
    """
    told = table.model_shape.get("max_model_len")
    if isinstance(told, int) and not isinstance(told, bool) and told > 0:
        return told
    name = registry_name(table.model)
    return None if name is None else registry()[name].max_model_len
