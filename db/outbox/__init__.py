"""The outbox: `write` beside the business change, `relay` on the way out, `failures` and `endpoints` for the admin."""
