"""The embedded stack: PostgreSQL and Temporal from wheels, and the supervisor behind `make up`."""
