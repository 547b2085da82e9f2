"""The report: all probes of a checkpoint, in one page that needs nothing else."""

from engram_app.report.write import write_report

__all__ = ["write_report"]
