"""The routing network: which agent is likely to succeed at a task, how well, how soon and for how much.

Nothing is imported here: `flowray.routing.data` needs pyarrow, `flowray.routing.network` needs torch, and a program
that only routes needs neither of the others' dependencies.
"""
