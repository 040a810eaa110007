"""One side of one repeat, as a fresh process: `python -m bench.workers.NAME SETTINGS` prints one JSON object."""
