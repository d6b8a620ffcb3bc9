"""When two times are the same."""

# Times closer than a nanosecond are the same time: it keeps rounding out of the decisions.
SAME_MS = 1e-6
