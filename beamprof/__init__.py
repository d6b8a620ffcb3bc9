"""BEAM's offline half: profile, inspect, import, replay. The CLI is ``beam``."""

__version__ = "0.1.0"
