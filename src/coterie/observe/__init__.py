"""See a run: directory, metrics, progress, plots, report."""
