"""The long tests of faults, which ``pytest tests/faults`` runs and plain ``pytest`` leaves out."""
