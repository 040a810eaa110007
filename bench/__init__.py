"""Measurements of flowray beside its peers: `python -m bench list`, `... NAME`, `... plot NAME`.

A figure without a spread, a machine and something to hold it against is no figure: every member repeats, alternates
with its peers in the same run, and runs each side in a process of its own. Peers from PyPI have environments of their
own, made when they are first measured (`bench/environments.py`); where that cannot be, they are absent, with the
reason in the document. Not part of the flowray package.
"""
