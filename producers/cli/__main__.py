"""`python -m producers.cli`: the same command where its script is not on the PATH."""

from producers.cli import main

main()
