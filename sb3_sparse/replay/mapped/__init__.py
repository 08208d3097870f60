"""Replay buffers in files that are mapped into memory: larger than the memory, and there after a crash."""
