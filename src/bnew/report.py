"""The public name of :mod:`bnew.results.report`."""

from bnew.results.report import table, write_report

__all__ = ["table", "write_report"]
