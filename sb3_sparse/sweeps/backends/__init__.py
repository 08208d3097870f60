"""Who makes the runs: processes of this machine, or Ray."""
