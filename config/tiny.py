"""The scale of experiments that need many runs, laid over the file of a run: 0.06 million parameters, 500 steps.

    python train.py config/shakespeare_char.py config/tiny.py --out_dir=out/laptop/try

As config/laptop.py, smaller and at a higher rate: figure 8's grid and the ablations take some eighty such runs.
Expected: see experiments/report.md. Cost: about 30 seconds on one CPU core.
"""

base = "laptop.py"
n_layer = 2
n_head = 3
n_embd = 48

max_iters = 500
learning_rate = 4e-3
min_lr = 4e-4
warmup_iters = 50
log_interval = 10
eval_interval = 250
