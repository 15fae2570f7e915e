"""GPT-2 XL (1.5B), fine-tuned on Shakespeare with MADA: table 4.

    python train.py config/finetune_gpt2xl_mada.py --init_from=auto      # starts, and after a crash goes on
    torchrun --standalone --nproc_per_node=8 train.py config/finetune_gpt2xl_mada.py --parallel=fsdp --init_from=auto

Expected: a final TRAINING loss of 0.255 (table 4), Adam's is 0.276, HyperAdam's 0.278. The paper says "approximately 2
epochs" and no learning rate. nanoGPT's recipe for this model and text, which this is but for its length (constant 3e-5,
32 sequences a step), cannot be at such a loss after two passes over 301,966 tokens: read the order of the three, not
the number. Memory: 63 GB, 12 GB sharded over eight (docs/SCALE.md). Cost: 590,000 tokens, half a minute of an H200 at a
third of its peak; downloading 6 GB, compiling and saving 50 GB take longer.
"""

out_dir = "out/finetune_gpt2xl_mada"
weights = "gpt2-xl"
dataset = "shakespeare"
log_interval = 1
eval_interval = 6
eval_iters = 32
always_save_checkpoint = False  # only after the best validation, and the end: 50 GB each
keep_checkpoints = 1

# The shape is that of the weights. Their 50257 tokens lie in 50304 rows; all 1024 positions are used.
block_size = 1024
vocab_multiple = 64
batch_size = 4
gradient_accumulation_steps = 8  # 4 x 8 = 32 sequences, 32,768 tokens; the text has 301,966
activation_checkpointing = True

max_iters = 18  # 590,000 tokens, 2 passes
learning_rate = 3e-5
decay_lr = False
warmup_iters = 0
min_lr = 3e-5
weight_decay = 0.1
grad_clip = 1.0

# MADA starts at Adam. The rates are those for OpenWebText: 5e-4 and 1e-1 in the paper, see gpt2_mada.py.
optimizer = "mada"
beta1 = 0.9
beta2 = 0.95
eps = 1e-6
hyper_lr = {"beta1": 1e-4, "beta2": 1e-4, "beta3": 2e-2, "rho": 2e-2, "c": 2e-2, "gamma": 2e-2}
