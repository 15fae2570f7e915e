"""GPT-2 small on OpenWebText with MADA from AVGrad, without Adan at the start (table 6, figure 5).
Expected: validation loss 2.8853 (table 6). Cost: as gpt2_mada.py.
"""

base = "gpt2_mada.py"
out_dir = "out/gpt2_mada_rho0"
beta3 = 0.0
