"""GPT-2 XL (1.5B), fine-tuned on Shakespeare with HyperAdam: table 4.
Expected: a final training loss of 0.278 (table 4; finetune_gpt2xl_mada.py says what is not known). Memory: 38 GB. Cost:
half a minute of an H200, without loading and saving.
"""

base = "finetune_gpt2xl_mada.py"
out_dir = "out/finetune_gpt2xl_hyperadam"
optimizer = "hyperadam"
hyper_lr = {"beta1": 1e-4, "beta2": 1e-4}
