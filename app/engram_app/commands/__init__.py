"""The commands of `engram`, one module each; see `engram_app.cli`."""
