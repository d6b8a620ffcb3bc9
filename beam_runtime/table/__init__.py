"""The perf-energy table: rows, checks, and what a step costs by them."""

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost, StepForecast

__all__ = ["PerfTable", "StepCost", "StepForecast"]
