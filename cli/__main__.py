"""`python -m cli` from the project's root, or `python -m adaptkit.cli` once installed."""

from . import main

main(prog_name="adaptkit")
