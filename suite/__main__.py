"""`python -m selfbench.suite` is the `selfbench` command."""

from .cli import main

main()
