"""What keeps a run going: durable files, signals, batches, arguments whose errors help."""
