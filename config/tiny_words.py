"""As config/tiny.py, but of GPT-2's tokens: 1.6 million parameters, nearly all of them the embeddings of 50,257 tokens.

    python train.py config/gpt2_mada.py config/tiny_words.py --out_dir=out/laptop/try

For what needs the paper's tokens: perplexities on other texts (table 3), and a model to fine-tune (table 4). It learns
little more than how frequent words are. Expected: see experiments/report.md. Cost: one or two minutes of one CPU core.
"""

base = "tiny.py"
dataset = "openwebtext1k"
n_embd = 32
n_head = 2
block_size = 128
batch_size = 2

max_iters = 200
warmup_iters = 20
eval_interval = 100
eval_iters = 100
