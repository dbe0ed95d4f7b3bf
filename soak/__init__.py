"""What takes minutes to show: `make soak` runs it, and `make test` a slice of each."""
