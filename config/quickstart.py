"""A small GPT (0.8 million parameters) learns to write Python on a laptop's CPU, with MADA.

Expected: see the README. Cost: a few minutes on 2 CPU cores, nothing to download.
"""

base = "shakespeare_char.py"  # MADA's settings and the learning rate are the same

out_dir = "out/quickstart"
dataset = "pystdlib"  # the source of the running Python's standard library

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0

block_size = 64
batch_size = 12
max_iters = 2000
