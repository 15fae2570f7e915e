"""GPT-2 small on OpenWebText with HyperAdam: Adam that learns beta1 and beta2 (tables 2 and 3).
Expected: validation loss 2.8950 (table 2). Cost: 40 H100 hours and the optimizer's own.
"""

base = "gpt2_adam.py"
out_dir = "out/gpt2_hyperadam"
optimizer = "hyperadam"
hyper_lr = {"beta1": 1e-4, "beta2": 1e-4}  # 5e-4 in the paper: see gpt2_mada.py
hyper_start = 50
