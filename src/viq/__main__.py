"""`python -m viq`: the command line."""

from viq.cli.main import main

main()
