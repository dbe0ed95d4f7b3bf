"""The tables: the business truth, the outbox and the record of what admins did.

Names are the nouns of the API, so that an operator's hand-written SQL guesses right. `migrations/` builds the same
(a test compares them); the triggers that keep `status_counts` are in the first migration.
"""

from db.schema import assignment, inventory, ops, order, outbox
from db.schema.base import metadata

__all__ = ["assignment", "inventory", "metadata", "ops", "order", "outbox"]
