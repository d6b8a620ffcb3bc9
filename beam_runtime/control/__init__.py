"""Events in, orders out: what a serving engine embeds."""
