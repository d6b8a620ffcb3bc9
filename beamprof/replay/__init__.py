"""Replay: play a trace through a model of the engine and see what each policy would have cost."""
