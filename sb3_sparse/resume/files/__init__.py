"""Checkpoints on the disk: folders that are whole or not there, what is in them, and who may write them."""
