"""GPT-2 small on OpenWebText with MADA-FS: the coefficients at the end of a MADA run, fixed from the start (table 2).
They are those of the run of gpt2_mada.py, or of what --coefficients_from names: an out_dir, or a record.
Expected: validation loss 2.8766 (table 2). Cost: as gpt2_mada.py without the hypergradients.
"""

base = "gpt2_mada.py"
out_dir = "out/gpt2_mada_fs"
coefficients_from = "out/gpt2_mada"
hyper_lr = {}
