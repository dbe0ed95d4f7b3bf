"""Decisions and timers: deterministic, no I/O. Everything that touches the world is an activity."""
