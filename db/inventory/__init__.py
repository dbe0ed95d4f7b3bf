"""Stock: `holds` (reservations and counters), `products` (what admins set), `drift` (where the two disagree)."""
