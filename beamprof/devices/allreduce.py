"""Time of one all-reduce of hidden states over a stage's GPUs; links do not follow the clock."""

import numpy as np

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array
from beamprof.models.shape import StageShape


def allreduce_us(device: Device, stage: StageShape, tokens: int, gpus: int) -> float:
    """Microseconds, by the bytes of the message: ``tokens`` hidden states."""
    message = tokens * stage.hidden_size * stage.activation_bytes
    return float(message_us(device, gpus, np.array([float(message)]))[0])


def message_us(device: Device, gpus: int, message_bytes: Array) -> Array:
    """Microseconds of all-reduces over 2, 4 or 8 GPUs (R,): between, the next larger count."""
    reduce = device.allreduce
    us = reduce.us_2 if gpus <= 2 else reduce.us_4 if gpus <= 4 else reduce.us_8
    knots = reduce.message_bytes
    slope = (us[-1] - us[-2]) / (knots[-1] - knots[-2])
    beyond = np.maximum(message_bytes - knots[-1], 0.0) * slope
    return np.asarray(np.interp(message_bytes, knots, us) + beyond)
