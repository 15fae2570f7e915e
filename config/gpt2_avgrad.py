"""GPT-2 small on OpenWebText with AVGrad, the paper's own replacement for AMSGrad (tables 2 and 3, figures 3 and 4).
Expected: validation loss 2.8895 (table 2). Cost: 40 H100 hours.
"""

base = "gpt2_adam.py"
out_dir = "out/gpt2_avgrad"
optimizer = "avgrad"
