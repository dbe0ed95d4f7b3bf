"""Every SQL statement of the project: one module a room, functions that take a connection inside a transaction."""
