"""The laptop's scale, laid over the file of a run: 0.8 million parameters learn Shakespeare character by character.

    python train.py config/gpt2_mada.py config/laptop.py --out_dir=out/laptop/mada

The optimizer and its coefficients stay those of the run; model, data, length and learning rate are these, nanoGPT's
for a laptop. The rate is the same for every optimizer: for Lion add --learning_rate=2.5e-4 --min_lr=2.5e-5, a quarter.
Expected: see experiments/report.md, which is made of such runs. Cost: three to four minutes on one CPU core.
"""

device = "cpu"  # also where there is a GPU

dataset = "shakespeare_char"
n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0

block_size = 64
batch_size = 12
gradient_accumulation_steps = 1

max_iters = 2000
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 100

log_interval = 1  # the final training loss is a mean over the last steps
eval_interval = 500
eval_iters = 0  # the whole validation split
always_save_checkpoint = True
keep_checkpoints = 1
