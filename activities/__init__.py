"""Side effects: one class a room, its dependencies injected by `worker.py`."""
