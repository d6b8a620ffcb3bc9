"""Measured operators of aiconfigurator's data as families: rows, predictions, constants.

A family yields its predictions in microseconds from a device, in columns, at the highest clock.
What belongs to how the rows were measured, and not to the GPU, stays here: the host's floor under
operators that were launched one by one (no CUDA graph), and the L2 cache that small attention was
repeated in.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from beamprof.devices.allreduce import message_us
from beamprof.devices.attention import Heads, chunk_us, decode_us, mean_keys
from beamprof.devices.delta import delta_us
from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, Gemms, gemm_us, soft_max
from beamprof.devices.latent import latent_us
from beamprof.devices.moe import Routed, experts_us
from beamprof.models.formats import FORMATS
from beamprof.models.layers import LatentAttention, MoeMlp
from beamprof.models.recurrent import GatedDelta

MIN_US = 20.0  # errors are reported from here on: shorter rows are mostly launch, but fitted
L2_KEPT = 0.85  # of the L2 cache: what is smaller stays in it while an operator is repeated
# L2 in two halves, each with a copy of what its SMs read: experts' weights, read by any, fit half.
HALVED_L2 = ("h100-sxm", "h200-sxm", "b200")
HELD_OUT_SHARE = 0.2
NODE_GPUS = 8
FEW_MODELS = 5  # a format measured on fewer MoE models has splits of them held out, not models
FLOOR_EXPONENT = 6.0
ELEMENT_BYTES = 2  # of all-reduced elements
KNOTS_BYTES = tuple(float(4**i) for i in range(4, 15))  # of all-reduces: 256 B to 268 MB
FORMS = {"bfloat16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4",
         "int4_wo": "int4", "w4a16_mxfp4": "mxfp4", "int8_wo": "int8_wo"}  # fmt: skip
# Kernels of today's default paths, where a format was measured with several.
MOE_KERNELS = {"mxfp4": "gptoss"}
# DeepSeek-V3 (hidden, width, top k, experts) was measured with its grouped top-k, by which other
# experts have work than the rows say: the weights they name would come at 8 TB/s on an H200.
GROUPED = (7168, 2048, 8, 256)
NOT_GATED = {(2688, 1856), (1024, 2688), (2048, 5120)}  # (hidden, width): squared ReLU
GEMM = {
    "efficiency": (0.8, 0.1, 1.3),
    "load_bytes_per_clock": (80.0, 5.0, 1e3),
    "overlap_exponent": (4.0, 1.0, 20.0),
    "prologue_inputs": (100.0, 1.0, 3000.0),
    "fixed_us": (4.0, 0.5, 60.0),
}
MOE = {
    "efficiency": (0.6, 0.05, 1.3),
    "load_bytes_per_clock": (60.0, 5.0, 1e3),
    "overlap_exponent": (3.0, 1.0, 20.0),
    "prologue_inputs": (100.0, 1.0, 3000.0),
    "bandwidth_share": (1.0, 0.2, 1.3),
    "fixed_us": (30.0, 1.0, 200.0),
    "row_bytes_per_clock": (1000.0, 20.0, 1e5),
    "expert_us": (0.02, 1e-3, 5.0),
    "spread_us": (3.0, 1e-2, 60.0),
}
ATTENTION_CHUNK = {
    "efficiency": (0.55, 0.01, 1.2),
    "prologue_keys": (64.0, 1.0, 3000.0),
    "tile_clocks": (1000.0, 1.0, 1e5),
    "balance_exponent": (2.0, 1.0, 20.0),
    "chunk_exponent": (1.5, 1.0, 20.0),
    "chunk_fixed_us": (8.0, 0.5, 60.0),
    "query_bandwidth_share": (0.5, 0.05, 1.3),
    "token_clocks": (10.0, 1e-2, 100.0),
}
ATTENTION_DECODE = {
    "kv_bytes_per_clock": (40.0, 3.0, 1e3),
    "least_keys": (100.0, 8.0, 256.0),
    "bandwidth_share": (1.0, 0.3, 1.2),
    "decode_fixed_us": (8.0, 0.5, 60.0),
    "decode_exponent": (2.5, 1.0, 20.0),
    "block_us": (0.5, 1e-3, 20.0),
    "row_us": (1e-3, 1e-6, 1.0),
    "slid_us": (1.0, 1e-3, 20.0),
    "split_us": (1.0, 1e-3, 20.0),
    "merge_per_clock": (130.0, 5.0, 1e5),
    "request_us": (1e-3, 1e-6, 1.0),
    "first_us": (5.0, 1e-3, 20.0),
}
LATENT = {
    "chunk_efficiency": (0.5, 0.05, 1.2),
    "decode_efficiency": (0.6, 0.05, 1.2),
    "bandwidth_share": (1.0, 0.3, 1.3),
    "fixed_us": (40.0, 1.0, 400.0),
    "row_bytes_per_clock": (500.0, 20.0, 1e5),
    "token_clocks": (10.0, 1e-2, 1e3),
    "fp8_us": (5.0, 1e-2, 60.0),
    "request_us": (0.05, 1e-4, 5.0),
}
DELTA = {
    "token_clocks": (90.0, 1.0, 1e4),
    "head_token_clocks": (50.0, 1.0, 1e4),
    "conv_bytes_per_clock": (800.0, 20.0, 1e5),
    "bandwidth_share": (1.0, 0.3, 1.3),
    "fixed_us": (8.0, 0.5, 60.0),
    "decode_fixed_us": (8.0, 0.5, 60.0),
    "prompt_states": (1.5, 0.1, 10.0),
}
SPILLING = "triton"  # kernels of a prompt that hand tensors to each other
Bounds = Mapping[str, tuple[float, float, float]]  # constant: start, least, most


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one family and format.

    Attributes:
        family, section: what is reported together; the device file's section that is fitted.
        constants: of that section, with start and bounds.
        measured_us: (R,). held_out: (R,) rows whose shape is kept out of the fit.
        predict: the model's microseconds of the rows with these indices.
        power_w: measured, where it was. work: FLOPs (as of bf16's rate) and DRAM bytes of each row.
        knots: of all-reduces, by GPUs: bytes and microseconds.
        of_a_node: rows of layouts that a node of 8 GPUs can have; they are reported by themselves
            as well.
    """

    family: str
    section: str
    constants: Bounds
    measured_us: Array
    held_out: np.ndarray
    predict: Callable[[Device, np.ndarray], Array]
    power_w: Array | None = None
    work: Callable[[Device], tuple[Array, Array]] | None = None
    knots: dict[int, tuple[Array, Array]] | None = None
    of_a_node: np.ndarray | None = None


def read_rows(folder: Path, with_power: bool = False) -> list[Rows]:
    """All families of one system's folder (latency/<system> or power/<system>)."""
    found: list[Rows] = []
    for file in sorted(folder.glob("*/vllm/*/*.parquet")):
        frame = pl.read_parquet(file)
        least = 200.0 if with_power else 0.0
        frame = frame.filter((pl.col("latency") * 1e3 >= least) & pl.col("latency").is_finite())
        reader = READERS.get(file.stem)
        if reader is not None and len(frame):
            found += reader(frame)
    return found


def _held_out(*columns: np.ndarray) -> np.ndarray:
    """Rows of one shape are held out together: a fifth of the shapes, by their checksum."""
    keys = np.stack([np.asarray(c).astype(str) for c in columns], axis=1)
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    kept_out = [zlib.crc32("|".join(key).encode()) % 100 < HELD_OUT_SHARE * 100 for key in unique]
    return np.array(kept_out)[inverse.ravel()]


def _columns(frame: pl.DataFrame, *names: str) -> list[Array]:
    return [frame[name].to_numpy().astype(np.float64) for name in names]


def _power(frame: pl.DataFrame) -> Array | None:
    return frame["power"].to_numpy() if "power" in frame.columns else None


def _top(device: Device) -> Array:
    return np.array([float(device.clocks.max_mhz)])


def _gemm(frame: pl.DataFrame) -> list[Rows]:
    found = []
    for (dtype,), part in frame.group_by("gemm_dtype", maintain_order=True):
        form = FORMS.get(str(dtype))
        if form is None:
            continue
        m, n, k = _columns(part, "m", "n", "k")
        us = part["latency"].to_numpy() * 1e3
        floor = _host_floor(part, us) if form == "fp8_block" else np.zeros_like(us)
        constants = dict(GEMM)
        if form != "bfloat16":
            constants["quantize_per_clock"] = (250.0, 20.0, 1e5)
        if form in ("fp8", "nvfp4"):  # a thread block a token; fp8_block has one for each group
            constants["token_clocks"] = (10.0, 0.1, 300.0)
        if form == "fp8_block":  # the host's floor hides it; see MLA's modules, in a graph
            del constants["fixed_us"]

        def predict(device: Device, at: np.ndarray, columns=(m, n, k), form=form, floor=floor):  # type: ignore[no-untyped-def]
            gemms = Gemms(*(c[at] for c in columns), FORMATS[form])
            us = gemm_us(device, gemms, _top(device))[:, 0]
            return soft_max(us, np.maximum(floor[at], 1e-9), FLOOR_EXPONENT)

        def work(device: Device, columns=(m, n, k), form=form):  # type: ignore[no-untyped-def]
            gemms = Gemms(*columns, FORMATS[form])
            return gemms.flops / device.gemm_kernels(gemms.form).rate, gemms.dram_bytes

        held = _held_out(n, k)
        found.append(Rows("GEMM", f"gemm.{form}", constants, us, held, predict, _power(part), work))
    return found


def _host_floor(part: pl.DataFrame, us: Array) -> Array:
    """What the host took to launch: rows of hardly any work, by kernel and by its branch on m."""
    work = part["m"] * part["n"] * part["k"]
    branch = pl.when(pl.col("m") <= 16).then(0).otherwise(pl.col("m") % 4 == 0).cast(pl.Int32)
    keyed = part.select("kernel_source", branch=branch).with_columns(us=pl.Series(us), work=work)
    small = keyed.filter(pl.col("work") < 2**27)
    floors = small.group_by("kernel_source", "branch").agg(floor=pl.col("us").median())
    joined = keyed.join(floors, on=["kernel_source", "branch"], how="left", maintain_order="left")
    return joined["floor"].fill_null(0.0).to_numpy()


def _context(frame: pl.DataFrame) -> list[Rows]:
    found = []
    frame = frame.filter(pl.col("head_dim").is_in([64, 128, 192, 256]))
    for (kv,), part in frame.group_by("kv_cache_dtype", maintain_order=True):
        heads, columns = _heads(part, str(kv))
        requests, tokens, before = _columns(part, "batch_size", "isl", "step")

        def predict(device: Device, at: np.ndarray, heads=heads, c=(requests, tokens, before)):  # type: ignore[no-untyped-def]
            some, columns = _at(heads, at), [x[at] for x in c]
            cold = chunk_cold(device, some, columns[0] * columns[1])
            us = chunk_us(device, some, *columns, _top(device), cold)[:, 0]
            # A prompt of one token is a decode, and run by its kernels.
            decodes = decode_us(device, some, columns[0], columns[0] * columns[2], _top(device),
                                cold_share(device, some.cache_bytes(columns[0])))  # fmt: skip
            return np.where(columns[1] == 1, decodes[:, 0], us)

        def work(device: Device, heads=heads, b=requests, n=tokens, k=before):  # type: ignore[no-untyped-def]
            del device
            pairs = b * n * mean_keys(n, k, heads.window_tokens)
            moved = 4.0 * b * n * heads.heads * heads.head_dim + heads.cache_bytes(b * n)
            return 4.0 * heads.heads * heads.head_dim * pairs, moved

        us = part["latency"].to_numpy() * 1e3
        held = _held_out(*columns)
        found.append(
            Rows(
                "attention",
                f"attention.{heads.kv}",
                ATTENTION_CHUNK,
                us,
                held,
                predict,
                _power(part),
                work,
            )
        )
    return found


def _generation(frame: pl.DataFrame) -> list[Rows]:
    found = []
    frame = frame.filter(pl.col("head_dim").is_in([64, 128, 192, 256]))
    for (kv,), part in frame.group_by("kv_cache_dtype", maintain_order=True):
        heads, columns = _heads(part, str(kv))
        requests, step = _columns(part, "batch_size", "step")

        def predict(device: Device, at: np.ndarray, heads=heads, b=requests, s=step):  # type: ignore[no-untyped-def]
            cache = heads.cache_bytes(b * np.minimum(s + 1, heads.window_tokens))[at]
            columns = (_at(heads, at), b[at], b[at] * s[at])
            return decode_us(device, *columns, _top(device), cold_share(device, cache))[:, 0]

        def work(device: Device, heads=heads, b=requests, s=step):  # type: ignore[no-untyped-def]
            del device
            seen = b * np.minimum(s + 1, heads.window_tokens)
            return 4.0 * heads.heads * heads.head_dim * seen, heads.cache_bytes(seen)

        us = part["latency"].to_numpy() * 1e3
        held = _held_out(*columns)
        found.append(
            Rows(
                "attention",
                f"attention.{heads.kv}",
                ATTENTION_DECODE,
                us,
                held,
                predict,
                _power(part),
                work,
            )
        )
    return found


def cold_share(device: Device, moved: Array) -> Array:
    """1 where what an operator moves does not stay in L2 from one repetition to the next."""
    return np.asarray(moved > L2_KEPT * device.memory.l2_mb * 1e6, dtype=np.float64)


def chunk_cold(device: Device, heads: Heads, new_tokens: Array) -> Array:
    """The same of chunks: queries, outputs, keys and values."""
    elements = 2.0 * (heads.heads + heads.kv_heads) * heads.head_dim
    return cold_share(device, new_tokens * elements * ELEMENT_BYTES)


def _heads(part: pl.DataFrame, kv: str) -> tuple[Heads, list[Array]]:
    columns = _columns(part, "num_heads", "num_key_value_heads", "head_dim")
    window = part["window_size"].to_numpy() if "window_size" in part.columns else 0 * columns[0]
    return Heads(*columns, np.where(window > 0, window, np.inf), kv), columns


def _at(heads: Heads, at: np.ndarray) -> Heads:
    columns = (heads.heads, heads.kv_heads, heads.head_dim, heads.window_tokens)
    return Heads(*(column[at] for column in columns), heads.kv)


def _moe(frame: pl.DataFrame) -> list[Rows]:
    found = []
    names = (
        "num_tokens",
        "hidden_size",
        "inter_size",
        "topk",
        "num_experts",
        "moe_tp_size",
        "moe_ep_size",
    )
    model_of = zip(names[1:5], GROUPED, strict=True)
    frame = frame.filter(~pl.all_horizontal(pl.col(name) == size for name, size in model_of))
    for (dtype,), part in frame.group_by("moe_dtype", maintain_order=True):
        form = FORMS.get(str(dtype))
        if form is None:
            continue
        if form in MOE_KERNELS:
            default = pl.col("kernel_source").str.contains(MOE_KERNELS[form])
            part = part.filter(default)  # noqa: PLW2901
        layers = []
        for *sizes, dist in part.select(*names, "distribution").iter_rows():
            n, hidden, width, top_k, experts, tp, ep = map(int, sizes)
            skew = 0.0 if dist == "balanced" else float(dist.rpartition("_")[2])
            gated = (hidden, width) not in NOT_GATED
            layers.append((MoeMlp(experts, top_k, width // tp, 0, gated, ep), hidden, n, skew))
        routed = Routed.drawn(layers)

        def predict(device: Device, at: np.ndarray, routed=routed, form=form):  # type: ignore[no-untyped-def]
            fields = ("choices", "active", "rows", "tiles", "hidden", "width", "ups", "spread")
            chosen = Routed(*(getattr(routed, name)[at] for name in fields))
            copies = 2.0 if device.name in HALVED_L2 else 1.0
            cold = cold_share(device, copies * chosen.weight_bytes(FORMATS[form]))
            return experts_us(device, chosen, FORMATS[form], _top(device), cold)[:, 0]

        us = part["latency"].to_numpy() * 1e3
        model = _columns(part, "hidden_size", "inter_size", "topk", "num_experts")
        few = len(np.unique(np.stack(model), axis=1).T) < FEW_MODELS
        held = _held_out(*model, *(_columns(part, "moe_tp_size", "moe_ep_size") if few else ()))

        def work(device: Device, routed=routed, form=form):  # type: ignore[no-untyped-def]
            rate = device.moe_kernels(FORMATS[form]).rate
            return routed.flops / rate, routed.dram_bytes(FORMATS[form])

        constants = dict(MOE)
        if form == "bfloat16":  # other formats' shapes all start at multiples of 16, or are padded
            constants["ragged_share"] = (0.3, 1e-2, 1.0)
        tp, ep = _columns(part, "moe_tp_size", "moe_ep_size")
        found.append(
            Rows("MoE", f"moe.{form}", constants, us, held, predict, _power(part), work,
                 of_a_node=tp * ep <= NODE_GPUS)
        )  # fmt: skip
    return found


def _mla(phase: str) -> Callable[[pl.DataFrame], list[Rows]]:
    """DeepSeek-V3's whole attention module: projections are GEMMs, which are fitted before."""

    def read(frame: pl.DataFrame) -> list[Rows]:
        heads, requests, isl, step = _columns(frame, "num_heads", "batch_size", "isl", "step")
        kv, gemm = frame["kv_cache_dtype"].to_numpy(), frame["gemm_type"].to_numpy()

        def predict(device: Device, at: np.ndarray) -> Array:
            us = np.zeros(at.size)
            for key in sorted({(heads[i], kv[i], gemm[i]) for i in at}):
                here = np.array([(heads[i], kv[i], gemm[i]) == key for i in at])
                us[here] = _module_us(
                    device, key, requests[at][here], isl[at][here], step[at][here]
                )
            return us

        def _module_us(device: Device, key, b, length, before):  # type: ignore[no-untyped-def]
            mixer = LatentAttention(int(key[0]), 1536, 512, 128, 64, 128)
            tokens = b * length if phase == "context" else b
            decodes = (0.0, 0.0) if phase == "context" else (b[:, None], (b * before)[:, None])
            chunk = (
                (b[:, None], length[:, None], before[:, None])
                if phase == "context"
                else (0.0, 0.0, 0.0)
            )
            total = latent_us(device, mixer, str(key[1]), decodes, chunk, _top(device))[:, 0]
            for n, k in mixer.projections(7168):
                size = np.ones_like(tokens)
                gemms = Gemms(tokens, n * size, k * size, FORMATS[FORMS[str(key[2])]])
                total = total + gemm_us(device, gemms, _top(device))[:, 0]
            return total

        names = ("decode_efficiency", "chunk_efficiency")
        left_out = names[0] if phase == "context" else names[1]
        constants = {name: bounds for name, bounds in LATENT.items() if name != left_out}
        us = frame["latency"].to_numpy() * 1e3
        held = _held_out(heads, kv, gemm)
        return [Rows("MLA", "latent", constants, us, held, predict, _power(frame))]

    return read


def _delta(frame: pl.DataFrame) -> list[Rows]:
    sizes = ("phase", "batch_size", "seq_len", "num_k_heads", "num_v_heads")
    whole = frame.group_by(*sizes, maintain_order=True).agg(pl.col("latency").sum(), pl.len())
    whole = whole.filter(pl.col("len") % 2 == 0)
    if not len(whole):
        return []
    b, length, kh, vh = _columns(whole, *sizes[1:])
    prompt = (whole["phase"] == "context").to_numpy()
    us = whole["latency"].to_numpy() * 1e3 * 2 / whole["len"].to_numpy()

    def predict(device: Device, at: np.ndarray) -> Array:
        out = np.zeros(at.size)
        for key in sorted({(kh[i], vh[i]) for i in at}):
            here = (kh[at] == key[0]) & (vh[at] == key[1])
            mixer = GatedDelta(int(key[0]), int(key[1]), 128, 128)
            some = at[here]
            decodes = np.where(prompt[some], 0.0, b[some])[:, None]
            new = np.where(prompt[some], length[some], 0.0)[:, None]
            out[here] = delta_us(device, mixer, decodes, b[some][:, None], new, _top(device))[:, 0]
        return out

    constants = dict(DELTA)
    if any(SPILLING in str(name) for name in frame["kernel_source"].unique()):
        constants["spill_bytes"] = (5000.0, 100.0, 1e5)
    return [Rows("gated delta", "delta", constants, us, _held_out(kh, vh), predict, None)]


def allreduce_rows(folder: Path) -> list[Rows]:
    """All-reduces of 16-bit elements as vLLM chooses them, in a CUDA graph.

    message_size counts elements: NCCL's rows of 8-bit elements take what rows of half as many
    16-bit ones do.
    """
    found = []
    for file in sorted(folder.glob("comm/vllm/*/custom_allreduce_perf.parquet")):
        graph = pl.read_parquet(file).filter(pl.col("backend") == "vllm_graph")
        message, gpus = _columns(graph, "message_size", "num_gpus")
        message, us = message * ELEMENT_BYTES, graph["latency"].to_numpy() * 1e3
        knots = {}
        for count in (2, 4, 8):
            order = np.argsort(message[gpus == count])
            knots[count] = (message[gpus == count][order], us[gpus == count][order])

        def predict(device: Device, at: np.ndarray, message=message, gpus=gpus):  # type: ignore[no-untyped-def]
            us = np.zeros(at.size)
            for count in (2, 4, 8):
                here = gpus[at] == count
                us[here] = message_us(device, count, message[at][here])
            return us

        # Knots are every other power of two: the ones between are held out.
        held = ~np.isin(message, KNOTS_BYTES)
        found.append(Rows("all-reduce", "allreduce", {}, us, held, predict, knots=knots))
    return found


READERS: dict[str, Callable[[pl.DataFrame], list[Rows]]] = {
    "gemm_perf": _gemm,
    "context_attention_perf": _context,
    "generation_attention_perf": _generation,
    "moe_perf": _moe,
    "mla_context_module_perf": _mla("context"),
    "mla_generation_module_perf": _mla("generation"),
    "gdn_perf": _delta,
}
