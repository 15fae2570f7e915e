"""What a run leans on: settings, processes, checkpoints, records, being stopped, memory, weights in and out."""
