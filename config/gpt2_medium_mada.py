"""GPT-2 medium (355M) on OpenWebText with MADA from AVGrad and Adan (table 7).
Expected: validation loss 2.6422 (table 7). Cost: about 120 H100 hours and the optimizer's
own; 34 GB on each of eight GPUs (docs/SCALE.md).
"""

base = "gpt2_mada.py"
out_dir = "out/gpt2_medium_mada"
n_layer = 24
n_head = 16
n_embd = 1024
learning_rate = 5e-4
