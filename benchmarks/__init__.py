"""What semel costs, and what others cost beside it. Each module is one command; `README.md` explains the figures."""
