"""What `reconstruct` found out: figures, and the page and charts that show them.

`figures.py` holds the numbers. `page.py` gathers what a page shows while frames pass by, and writes it: from
`pictures.py` (what is kept of the frames), `charts.py` (figures over time, as shapes of `drawing.py`), `facts.py`
(model, machine, memory) and `words.py` (what the numbers mean), by the templates beside them.
"""

from temporal_vae.video.report.figures import Report, peak_memory, report_path

__all__ = ["Report", "peak_memory", "report_path"]
