"""HTTP: routing, roles and problem details. Reads go straight to `db`, so they work while every worker is down."""
