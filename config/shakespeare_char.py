"""MADA on Shakespeare, character by character, with 11 million parameters: one point of the paper's figure 8.

Expected: a final TRAINING loss of 0.63 to 0.79, depending on the betas it starts from (Adam: 0.60 to 0.94). The model
is too large for the text, so the validation loss has its minimum, about 1.47 in nanoGPT's hands, before the end.
Cost: minutes on a GPU, more than a day on 2 CPU cores.
"""

out_dir = "out/shakespeare_char"
dataset = "shakespeare_char"
eval_interval = 250
eval_iters = 400
log_interval = 10

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

block_size = 256
batch_size = 64
gradient_accumulation_steps = 1

max_iters = 5000
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 100
weight_decay = 0.1
grad_clip = 1.0
eps = 1e-8

# MADA starts at Adam: beta3 = 0, rho = c = gamma = 1, its defaults.
optimizer = "mada"
beta1 = 0.9
beta2 = 0.95
hyper_lr = {"beta1": 2.5e-3, "beta2": 2.5e-3, "beta3": 2.5e-3, "rho": 2.5e-3, "c": 2.5e-3, "gamma": 2.5e-3}
hyper_momentum = {"beta1": 0.5, "beta2": 0.5, "beta3": 0.5, "rho": 0.5, "c": 0.5}  # none for gamma
