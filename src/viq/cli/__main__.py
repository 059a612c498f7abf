"""`python -m viq.cli`: the command line."""

from viq.cli.main import main

main()
