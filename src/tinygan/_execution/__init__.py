"""How a step is executed: in 16 bits, compiled, captured, finite or skipped, by several ranks."""
