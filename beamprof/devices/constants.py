"""The sections of a device file: what each constant means and in which unit it is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clocks:
    """The SM clocks that can be locked, and those a profile takes when none are asked for."""

    min_mhz: int
    max_mhz: int
    step_mhz: int
    profile_mhz: tuple[int, ...]

    @property
    def supported_mhz(self) -> tuple[int, ...]:
        """Every clock the device offers, ascending."""
        return tuple(range(self.min_mhz, self.max_mhz + 1, self.step_mhz))


@dataclass(frozen=True, slots=True)
class Compute:
    """The SMs. Rates are per SM clock, so a time is cycles over MHz.

    Attributes:
        sms: streaming multiprocessors.
        tensor_flops_per_clock: dense bf16 FLOPs of one SM in one clock.
        activation_bytes_per_clock: elementwise traffic of the whole GPU per clock (mostly L2).
    """

    sms: int
    tensor_flops_per_clock: int
    activation_bytes_per_clock: float


@dataclass(frozen=True, slots=True)
class GemmKernels:
    """GEMMs of one weight format ([gemm.<format>]); see beamprof.devices.gemm.

    Attributes:
        rate: peak rate over that of bf16.
        efficiency: share of that rate which a main loop sustains.
        load_bytes_per_clock: operand bytes that one SM takes in per clock (from L2).
        prologue_inputs: what starts and ends a tile, as so many more of the K inputs.
        overlap_exponent: p of (compute^p + memory^p)^(1/p); infinity would be perfect overlap.
        fixed_us: start and end of the kernel, where launch.kernel_us does not hold it.
        quantize_per_clock: activations brought into the format, elements per clock; 0 = none.
        token_clocks: of the whole GPU, the least that takes for a token.
        split_k: 1 where K may be split over idle SMs.
        dispatch: tile shapes by tokens as (up to tokens, tile_m, tile_n), one after the other;
            empty = the cheapest.
    """

    efficiency: float
    load_bytes_per_clock: float
    overlap_exponent: float
    rate: float = 1.0
    prologue_inputs: float = 0.0
    fixed_us: float = 0.0
    quantize_per_clock: float = 0.0
    token_clocks: float = 0.0
    split_k: int = 1
    dispatch: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class MoeKernels:
    """Grouped GEMMs over experts of one weight format ([moe.<format>]); see beamprof.devices.moe.

    Attributes:
        rate, efficiency, load_bytes_per_clock, prologue_inputs, overlap_exponent: as GemmKernels.
        bandwidth_share: of the DRAM bandwidth, while experts are streamed.
        fixed_us: routing, permuting, and the kernels' starts.
        row_bytes_per_clock: rows gathered, activated and summed up, bytes per clock.
        expert_us: for each expert with work.
        spread_us: besides, where the experts are spread over GPUs: choices of others are left out.
        ragged_share: of load_bytes_per_clock, where the rows of a weight do not start at multiples
            of 16 elements (a width of 704 over 8 GPUs): they are loaded element by element.
        least_rows: of a tile, for kernels that have no lower ones.
    """

    efficiency: float
    load_bytes_per_clock: float
    overlap_exponent: float
    rate: float
    prologue_inputs: float
    bandwidth_share: float
    fixed_us: float
    row_bytes_per_clock: float
    expert_us: float
    spread_us: float = 0.0
    ragged_share: float = 1.0
    least_rows: int = 16


@dataclass(frozen=True, slots=True)
class AttentionKernels:
    """Attention over a cache of one format ([attention.<format>]); see beamprof.devices.attention.

    Attributes:
        head_dims: head sizes that the tuples below are given for, linear in between.
        efficiency: share of the bf16 tensor rate in chunk attention, by head size.
        prologue_keys, tile_clocks: what starts and ends a query tile, as so many more keys, and
            besides, whatever the head size.
        balance_exponent: how sharply its longest tile paces a chunk that does not fill the SMs;
            0 = not at all.
        chunk_exponent, decode_exponent: p of (compute^p + memory^p)^(1/p); 1 = one after the other.
        chunk_fixed_us, decode_fixed_us: the kernels' starts.
        bandwidth_share: of the DRAM bandwidth, while the cache is streamed.
        query_bandwidth_share: the same for the queries and outputs of a chunk.
        token_clocks: of the whole GPU, to write one token's keys and values, of WRITE_THREADS
            elements and more, to the cache.
        query_rows: of a chunk's tile.
        chunk_packs, decode_packs: 1 where a thread block takes all heads of a group; 0 where a
            chunk's tile is of one head, and where FlashAttention 2 decodes.
        chunk_splits: tiles of a chunk are split over keys while they fill fewer than this share of
            the SMs (0.8: FlashAttention 3); 0 = never (FlashAttention 2).
        kv_bytes_per_clock: cache bytes that one SM's decode attention takes in per clock, by head
            size. least_keys: fewer keys cost a block as much.
        block_us: a decode's thread block. row_us: besides, for each head of its group.
        slid_us: besides, where a window has slid: it straddles key tiles; by head size.
        split_us: besides, of the pass, where caches are split.
        merge_per_clock: query elements that the merging of splits takes in per clock; 0 = none.
        request_us: each request of a decode batch, in the kernel that plans the splits.
        first_us: until DRAM streams at its bandwidth; never more than the stream itself takes.
    """

    head_dims: tuple[float, ...]
    efficiency: tuple[float, ...]
    prologue_keys: float
    balance_exponent: float
    kv_bytes_per_clock: tuple[float, ...]
    chunk_fixed_us: float = 0.0
    decode_fixed_us: float = 0.0
    bandwidth_share: float = 1.0
    query_bandwidth_share: float = 1.0
    tile_clocks: float = 0.0
    chunk_exponent: float = 1.0
    token_clocks: float = 0.0
    query_rows: int = 128
    chunk_packs: int = 1
    chunk_splits: float = 0.5
    decode_packs: int = 1
    least_keys: float = 1.0
    block_us: float = 0.0
    row_us: float = 0.0
    slid_us: tuple[float, ...] = ()
    split_us: float = 0.0
    merge_per_clock: float = 0.0
    request_us: float = 0.0
    first_us: float = 0.0
    decode_exponent: float = 20.0


@dataclass(frozen=True, slots=True)
class LatentKernels:
    """Multi-head latent attention ([latent]); see beamprof.devices.latent.

    Attributes:
        chunk_efficiency, decode_efficiency: share of the bf16 tensor rate.
        bandwidth_share: of the DRAM bandwidth, while the latent cache is streamed.
        fixed_us: norms, RoPE, cache write and the kernels' starts. row_bytes_per_clock: elementwise
            traffic of a token's heads.
        token_clocks: of the whole GPU, for what each token costs whatever its heads.
        fp8_us: besides fixed_us: kernels that bring queries and latents into an 8-bit format.
        request_us: besides, each request of a decode batch: its thread blocks and merged splits.
    """

    chunk_efficiency: float
    decode_efficiency: float
    bandwidth_share: float
    fixed_us: float
    row_bytes_per_clock: float
    token_clocks: float = 0.0
    fp8_us: float = 0.0
    request_us: float = 0.0


@dataclass(frozen=True, slots=True)
class DeltaKernels:
    """Gated delta nets ([delta]); see beamprof.devices.delta.

    Attributes:
        token_clocks: one token of a prompt after the other, where too few heads fill the SMs.
        head_token_clocks: work of one value head for one token, on one SM.
        conv_bytes_per_clock: the short convolution's traffic, of the whole GPU.
        bandwidth_share: of the DRAM bandwidth, while states are read and written.
        fixed_us, decode_fixed_us: the kernels' starts, of prompts and of decodes.
        prompt_states: times that a prompt's state is read and written: gathered from the cache,
            run through, put back.
        spill_bytes: of a value head's token, that kernels hand to each other (Triton's; a fused
            kernel has none); what of it does not fit in L2 goes through DRAM.
    """

    token_clocks: float
    head_token_clocks: float
    conv_bytes_per_clock: float
    bandwidth_share: float
    fixed_us: float
    decode_fixed_us: float = 0.0
    prompt_states: float = 1.0
    spill_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """DRAM: its size, and bandwidth against SM clock, linear between its knots.

    Attributes:
        size_gb: 10^9 bytes.
        clocks_mhz, bandwidth_tbps: the knots.
        l2_mb: the L2 cache, 10^6 bytes. Operators repeated in it read no DRAM; servers' do.
        l2_activations: share of the L2 cache in which a GEMM finds its inputs and leaves its
            outputs, in servers as well: where DRAM is slow and the cache large (GDDR).
    """

    size_gb: float
    clocks_mhz: tuple[float, ...]
    bandwidth_tbps: tuple[float, ...]
    l2_mb: float = 0.0
    l2_activations: float = 0.0


@dataclass(frozen=True, slots=True)
class Launch:
    """What a kernel costs besides its work, inside a CUDA graph."""

    kernels_per_layer: int
    kernel_us: float


@dataclass(frozen=True, slots=True)
class AllReduce:
    """One all-reduce over 2, 4 or 8 GPUs of a stage, against the bytes of the message.

    Linear between the knots and beyond the last. More than 8 GPUs are taken as 8.
    """

    message_bytes: tuple[float, ...]
    us_2: tuple[float, ...]
    us_4: tuple[float, ...]
    us_8: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Power:
    """Per-GPU power; see beamprof.devices.power for the law.

    Attributes:
        floor_w: P0, what does not follow the SM clock.
        knee_ghz: f0, up to where the core voltage is at its minimum. knee_width_ghz: over what
            distance it starts to rise; 0 = at once.
        voltage_slope_per_ghz: s, relative rise of the voltage above the knee.
        clock_w_per_ghz: the clock tree of a GPU that waits.
        busy_w_per_ghz: on top, SMs that run kernels.
        stall_share: share of busy_w_per_ghz saved while the SMs wait for DRAM.
        tensor_w_per_ghz: on top, tensor cores at their peak.
        memory_w_per_tbps: DRAM traffic.
        link_w: links to the other GPUs of a tensor-parallel stage, while it runs.
        cap_w: the board's power limit.
        attention_share: what FLOPs of attention draw of what those of a GEMM do.
        reduce_idle_share: share of busy_w_per_ghz saved while a stage's GPUs all-reduce.
    """

    floor_w: float
    knee_ghz: float
    voltage_slope_per_ghz: float
    clock_w_per_ghz: float
    busy_w_per_ghz: float
    stall_share: float
    tensor_w_per_ghz: float
    memory_w_per_tbps: float
    link_w: float
    cap_w: float
    attention_share: float = 1.0
    reduce_idle_share: float = 0.0
    knee_width_ghz: float = 0.0
