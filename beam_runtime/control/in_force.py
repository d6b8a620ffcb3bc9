"""The orders in force: numbered, and handed to the engine where it has an adapter."""

from dataclasses import replace

from beam_runtime.control.orders import EngineAdapter, Orders
from beam_runtime.types import Knobs, Rules


class OrdersInForce:
    """One set of orders at a time, each with a number above the last one's.

    Args:
        own: the engine's own settings, in force until others are published.
        engine: its adapter, where there is one.
        why: the reason for the first orders.
    """

    def __init__(self, own: Knobs, engine: EngineAdapter | None, why: str) -> None:
        self._own = own
        self._engine = engine
        self.orders = self.engines_own(why)

    def engines_own(self, why: str) -> Orders:
        """The engine's own settings, and why."""
        return Orders(self._own, Rules.vanilla(), steering=False, why=why)

    def put(self, orders: Orders) -> None:
        """For whoever reads them; an adapter is not called."""
        self.orders = replace(orders, number=self.orders.number + 1)

    def publish(self, orders: Orders) -> None:
        """Put these in force. Raises whatever the engine's adapter raises; they stay in force."""
        self.put(orders)
        if self._engine is not None:
            self._engine.apply(self.orders)
