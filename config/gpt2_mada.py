"""GPT-2 small (124M) on OpenWebText with MADA: the paper's main result (tables 2 and 3, figures 3, 4 and 7).
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2_mada.py
Expected: validation loss 2.8806 (table 2), Adam's is 2.8956. Cost: as gpt2_adam.py and the optimizer's own time, which
benchmarks/ measures.
"""

base = "gpt2_adam.py"
out_dir = "out/gpt2_mada"
optimizer = "mada"
beta3 = 0.9
rho = 0.0
c = 1.0
gamma = 1.0

# The paper says 5e-4 and 1e-1. Its code takes the hypergradient from ONE micro-batch of loss / 5, its gradients being
# accumulated over 5 micro-batches on each GPU. Ours is the full batch's, on which those rates act as a fifth of them.
hyper_lr = {"beta1": 1e-4, "beta2": 1e-4, "beta3": 2e-2, "rho": 2e-2, "c": 2e-2, "gamma": 2e-2}
hyper_start = 50
