"""Couriers and deliveries: `deliveries` on their way, `couriers`, `commit` (who gets what), `zones` and rounds."""
