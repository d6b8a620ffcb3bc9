"""Request traces: what arrived when, with which lengths, from many sources in one form."""
