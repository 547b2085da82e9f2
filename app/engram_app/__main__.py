"""`python -m engram_app` is `engram`."""

from engram_app.cli import main

main()
