"""What takes long: kills, hangs, and faults of every kind; run with ``pytest tests/faults``."""
