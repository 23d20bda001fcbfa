"""The tests. A package, so that one of this name that others install cannot be taken for it."""
