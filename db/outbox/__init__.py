"""The outbox: `write` beside the business change, `relay` on the way out, `failures` and `endpoints` for the admin.

Lock order, after all others: bulk operation → endpoint → shard → failing message → claim. Taking a probe waits for
nobody, so it may come after a failing message.
"""
