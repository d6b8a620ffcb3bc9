"""The compiled twins: composer, steady, emulator and search over arrays instead of objects.

Same names, same rules, same order of operations as the modules of the same name one level up,
which say what they mean; a request is a row, so that a step costs nanoseconds per request.
A property test holds both equal: whoever changes a rule changes it twice.

Compiled once when a controller is built, cached on disk, never compiled on a request. The
replay's plant builds its own event loop from ``compose``, ``issue`` and ``finish``.
"""
