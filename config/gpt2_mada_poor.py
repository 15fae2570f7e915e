"""GPT-2 small on OpenWebText with MADA from poorly chosen betas: "MADA-" of tables 2 and 3, and figure 6.
Expected: validation loss 2.8921 (table 2); beta1 and beta2 rise. Cost: as gpt2_mada.py.
"""

base = "gpt2_mada.py"
out_dir = "out/gpt2_mada_poor"
beta1 = 0.7
beta2 = 0.8
beta3 = 0.0
