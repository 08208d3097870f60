"""What runs left behind: reading it, putting runs together, means and bands, pictures and a page."""

from sb3_sparse.results.groups import collect, group_runs
from sb3_sparse.results.runs import Run, read_run, read_runs
from sb3_sparse.results.statistics import Curve, Series, bootstrap_interval, mean_curve, rolling_mean

__all__ = [
    "Curve",
    "Run",
    "Series",
    "bootstrap_interval",
    "collect",
    "group_runs",
    "mean_curve",
    "read_run",
    "read_runs",
    "rolling_mean",
]
