"""`python -m flowray.cli`: the command line where its script is not on the path."""

from flowray.cli import main

main()
