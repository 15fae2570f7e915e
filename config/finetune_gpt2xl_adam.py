"""GPT-2 XL (1.5B), fine-tuned on Shakespeare with Adam: table 4.
Expected: a final training loss of 0.276 (table 4; finetune_gpt2xl_mada.py says what is not known). Memory: 32 GB. Cost:
half a minute of an H200, without loading and saving.
"""

base = "finetune_gpt2xl_mada.py"
out_dir = "out/finetune_gpt2xl_adam"
optimizer = "adam"
