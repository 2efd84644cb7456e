"""One self-contained HTML page from the files of runs: curves, classes, samples, verdicts, and what they mean.

Needs Altair and vl-convert: ``pip install 'lightning-stiffness[report]'``.
"""

from lightning_stiffness.report.page import page, write_page

__all__ = ["page", "write_page"]
