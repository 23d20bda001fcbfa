"""The command line: ``tinygan train``, ``sample`` and what else comes after training."""
