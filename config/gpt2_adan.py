"""GPT-2 small on OpenWebText with Adan (tables 2 and 3), whose authors write 0.98, 0.92, 0.99 for beta1, beta3, beta2.
Expected: validation loss 2.8896 (table 2). Cost: 40 H100 hours.
"""

base = "gpt2_adam.py"
out_dir = "out/gpt2_adan"
optimizer = "adan"
beta1 = 0.98
beta2 = 0.99
beta3 = 0.92
