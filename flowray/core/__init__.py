"""The deterministic core: told the time, takes events, returns commands.

Pure: the standard library and msgspec, no clock, no global randomness, no IO. `coordination.Coordination` is the
machine. Some modules are parts of it, which are given the machine and emit commands by it: `placing`, `attempts`,
`recording`, `stopping`, `adopting`, `lives`, `draining`, `escalation`, `stateful`. All others know nothing of that.
"""
