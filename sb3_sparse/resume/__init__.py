"""Runs that survive: exact checkpoints, and agents in files without pickle."""
