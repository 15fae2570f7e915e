"""HyperAdam on Shakespeare, character by character, 11 million parameters: one point of the paper's figure 8.
Expected: between Adam's (shakespeare_char_adam.py) and MADA's (shakespeare_char.py).
"""

base = "shakespeare_char.py"
out_dir = "out/shakespeare_char_hyperadam"
optimizer = "hyperadam"
hyper_lr = {"beta1": 2.5e-3, "beta2": 2.5e-3}
hyper_momentum = 0.5
