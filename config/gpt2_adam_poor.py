"""GPT-2 small on OpenWebText with Adam and poorly chosen betas: "Adam-" of tables 2 and 3.
Expected: validation loss 2.9157 (table 2). Cost: 40 H100 hours.
"""

base = "gpt2_adam.py"
out_dir = "out/gpt2_adam_poor"
beta1 = 0.7
beta2 = 0.8
