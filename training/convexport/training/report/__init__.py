"""`report.html`: one page that shows what a network learned, in any browser, without internet access."""

from convexport.training.report.gallery import ReportInputs
from convexport.training.report.report import write_report

__all__ = ["ReportInputs", "write_report"]
