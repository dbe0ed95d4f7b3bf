"""What `make bench` measures, beside what the machine and other libraries reach on the same server."""
