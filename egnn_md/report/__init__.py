"""Reports of runs: one page that opens offline, pictures, and numbers."""

from egnn_md.report.page import Report, write_report

__all__ = ["Report", "write_report"]
