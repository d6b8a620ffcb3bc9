"""The version, where every room may import it without what beamprof offers."""

__version__ = "0.1.0"
