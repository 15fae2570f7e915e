"""GPT-2 small on OpenWebText with MADA-FS: the coefficients at the end of a MADA run, fixed from the start (table 2).

Give them on the command line, as `python -m experiments run table2 --scale=paper` does: --beta1=... to --gamma=...
Expected: validation loss 2.8766 (table 2). Cost: as gpt2_mada.py without the hypergradients. Never run here.
"""

base = "gpt2_mada.py"

out_dir = "out/gpt2_mada_fs"
hyper_lr = {}
