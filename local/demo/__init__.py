"""`make demo`: a real shopping-basket trace, driven through a running stack's API."""
