"""Fast start of Ray's workers: they are forked from a process that has imported everything already.

Ray starts each worker as a fresh Python that spends about a second importing, and keeps a copy of all of it for
itself. It starts them with the `sys.executable` of the process that started the node, so a small `launcher` in its
place can send the work to a `template` process, which forks. Whatever goes wrong there, the launcher starts the
worker as Ray would have: a template can only ever make a start faster.

    setup      writes the launcher down and puts it in the place of `sys.executable`
    launcher   what Ray runs instead of Python: asks the template, or becomes Python
    template   the process that forks
    worker     what a forked child does before it is a Ray worker like any other
    deferred   Ray's serializers for pydantic, starlette and pyarrow, registered when those are imported
    quick      starting a head without waiting for what nobody needs
    cli        Ray's own command line with the launcher in place

There is one template for each raylet, because Ray's C++ part reads the raylet's id from the environment once, when it
is loaded. It is started with the node, and ends with its raylet or when nobody has asked it for long.
"""
