"""`python -m semel`: the command line, where no `semel` stands on the path."""

from semel.cli import main

main()
