"""``python -m bnew``: the command line."""

from bnew.cli import main

main()
