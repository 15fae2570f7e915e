"""GPT-2 small on OpenWebText with Lion at a quarter of Adam's learning rate (tables 2 and 3).
Expected: validation loss 2.8892 (table 2). Cost: 40 H100 hours.
"""

base = "gpt2_adam.py"
out_dir = "out/gpt2_lion"
optimizer = "lion"
learning_rate = 1.5e-4
beta1 = 0.95
beta2 = 0.98
