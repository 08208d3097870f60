"""Studies: a plan, the runs that come of it, who makes them, and what they cost. The report is in ``results/studies``."""

from sb3_sparse.sweeps.planning.plan import Plan, PlannedRun, read_plan
from sb3_sparse.sweeps.runs.execute import execute
from sb3_sparse.sweeps.study import Study, open_study

__all__ = ["Plan", "PlannedRun", "Study", "execute", "open_study", "read_plan"]
