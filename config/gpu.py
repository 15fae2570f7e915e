"""One GPU's scale, laid over the file of a run: 11 million parameters learn Shakespeare, 1000 steps.

    python train.py config/gpt2_mada.py config/gpu.py --out_dir=out/gpu/mada

As config/laptop.py, with nanoGPT's larger model for this text. Never run here. Cost: about a minute on one GPU.
"""

base = "laptop.py"
device = "auto"
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
block_size = 256
batch_size = 64
max_iters = 1000
eval_interval = 250
