"""GPT-2 small (124M) on OpenWebText with Adam: the baseline of the paper's tables 2 and 3, figures 3 and 4.

    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_adam.py

Expected: validation loss 2.8956 (table 2). Cost: 49.2 billion tokens, about 40 H100 hours at 330,000 tokens per second
and GPU, 5 hours on eight.
"""

out_dir = "out/gpt2_adam"
dataset = "openwebtext"
seed = 5000
log_interval = 10
eval_interval = 500
eval_iters = 0  # the whole validation split

n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.0
bias = False
vocab_multiple = 64  # 50257 tokens in 50304 rows

block_size = 1024
batch_size = 12
gradient_accumulation_steps = 5 * 8  # 12 x 40 = 480 sequences a step, whatever the number of GPUs

max_iters = 100_000
learning_rate = 6e-4
min_lr = 1.5e-5
warmup_iters = 2000
weight_decay = 0.1
grad_clip = 1.0
eps = 1e-6

optimizer = "adam"
beta1 = 0.9
beta2 = 0.95
