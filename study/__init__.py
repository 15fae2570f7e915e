"""What the comparison of runs is made of: statistics over seeds, runs as subprocesses, runs read back, reports.

compare.py, sweep.py and experiments/ use these. Nothing in here imports train.py: a run is its config.json and
metrics.csv, or the record that experiments/ keeps of one.
"""
