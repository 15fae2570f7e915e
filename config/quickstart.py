"""A small GPT learns to write Python on a laptop's CPU, trained by MADA."""

out_dir = "out/quickstart"
dataset = "shakespeare_char"

n_layer = 4
n_head = 4
n_embd = 128
block_size = 64
batch_size = 12
gradient_accumulation_steps = 1
dropout = 0.0

max_iters = 2000
eval_interval = 250
eval_iters = 400
log_interval = 10

optimizer = "mada"
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 100
weight_decay = 0.1
grad_clip = 1.0
eps = 1e-8
hyper_lr = {"beta1": 2.5e-3, "beta2": 2.5e-3, "beta3": 2.5e-3, "rho": 2.5e-3, "c": 2.5e-3, "gamma": 2.5e-3}
hyper_momentum = {"beta1": 0.5, "beta2": 0.5, "beta3": 0.5, "rho": 0.5, "c": 0.5}
