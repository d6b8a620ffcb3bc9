"""The engine on paper: from a state and knobs to steps, times and joules."""
