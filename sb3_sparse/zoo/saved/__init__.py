"""Agents that earlier runs have saved, and what belongs to them."""
