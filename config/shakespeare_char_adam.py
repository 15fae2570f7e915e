"""Adam on Shakespeare, character by character, 11 million parameters: one point of the paper's figure 8.
Expected: a final training loss from 0.94 (beta1 = 0.01) to 0.60 (beta1 = 0.875, beta2 = 0.99).
"""

base = "shakespeare_char.py"
out_dir = "out/shakespeare_char_adam"
optimizer = "adam"
