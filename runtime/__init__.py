"""Infrastructure of runs: settings, processes, checkpoints, metrics, signals, memory, import and export of weights."""
