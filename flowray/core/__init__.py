"""The deterministic core: told the time, takes events, returns commands.

Pure: the standard library and msgspec, no clock, no global randomness, no IO. `coordination.Coordination` is the
machine; the other modules are its parts and know nothing of commands.
"""
