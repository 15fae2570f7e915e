"""GPT-2 in one file: the model of nanoGPT with its module names, so that released weights fit.

Shapes: B sequences in a batch, T tokens in a sequence (at most block_size), C features (n_embd), H heads of D = C / H
features each, V vocabulary entries, padded up to P rows of the embedding table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

IGNORE = -1  # a target with this value is left out of the loss (padding of the last validation batch)


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2 small (124M)."""

    block_size: int = 1024  # longest sequence, in tokens
    vocab_size: int = 50257  # V, token ids are 0 .. V - 1
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True  # in linear layers and layer norms, as GPT-2; nanoGPT trains without
    vocab_multiple: int = 1  # the embedding table has P rows, V rounded up to this (64 suits tensor cores)

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")

    @property
    def padded_vocab_size(self) -> int:
        """P, the rows of the embedding table."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple


class CausalSelfAttention(nn.Module):
    """Causal attention with H heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # query, key, value in one matmul
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))  # (B, H, T, D) each
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """The position-wise half of a block, with a hidden layer of 4C features."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh")  # GPT-2's approximation
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))  # (B, T, C) -> (B, T, 4C) -> (B, T, C)


class LayerNorm(nn.LayerNorm):
    """torch's, for bfloat16 weights (FSDP's mixed precision) and a float32 residual stream."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class Block(nn.Module):
    """Pre-norm transformer block: both halves add to the residual stream."""

    activation_checkpointing = False

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(self.residual, x, use_reentrant=False)
        return self.residual(x)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2. The output head and the token embedding are one weight (`lm_head.weight is transformer.wte.weight`)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight  # type: ignore[assignment]
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, CausalSelfAttention | MLP):
            # 2 n_layer of these add up in the residual stream, whose variance stays independent of depth (GPT-2 paper).
            # `apply` visits children first, so this overrides the 0.02 above.
            nn.init.normal_(module.c_proj.weight, mean=0.0, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None, reduction: str = "mean"
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Token ids (B, T) -> the last position's logits (B, 1, P) and None; given targets (B, T), None and their cross
        entropy in nats. Training does not return logits: as an output of compiled code they would get a gradient."""
        x = self.hidden(idx)  # (B, T, C)
        if targets is None:
            return self.head(x[:, [-1], :]), None  # (B, 1, P)
        return None, self.loss(x, targets, reduction)

    def loss(self, x: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        """Cross entropy of the head's logits for its input (B, T, C) against targets (B, T)."""
        logits = self.head(x)  # (B, T, P)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction=reduction)

    def compile_parts(self) -> None:
        """Compile a block, whose code all blocks use, and the loss: the same work for a compiler whatever n_layer is.
        What lies between, embeddings and the last norm, is a few kernels."""
        for block in self.blocks:
            block.compile()
        self.loss = torch.compile(self.loss)  # type: ignore[method-assign]

    def hidden(self, idx: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) -> input of the head (B, T, C)."""
        _, T = idx.shape
        assert self.config.block_size >= T, f"{T} tokens, but block_size is {self.config.block_size}"
        positions = torch.arange(T, device=idx.device)  # (T)
        x = self.transformer["wte"](idx) + self.transformer["wpe"](positions)  # (B, T, C) + (T, C)
        x = self.transformer["drop"](x)
        for block in self.blocks:
            x = block(x)
        return self.transformer["ln_f"](x)

    @property
    def blocks(self) -> Any:
        """The transformer blocks, first to last."""
        return self.transformer["h"]

    def activation_checkpointing(self, on: bool) -> None:
        """Let each block keep only its input for the backward pass, which recomputes the rest."""
        for block in self.blocks:
            block.activation_checkpointing = on

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> logits (..., P), minus infinity for the padding rows: no probability, no gradient."""
        mask = None  # added as the matmul's bias, which costs nothing
        if self.config.padded_vocab_size > self.config.vocab_size:
            ids = torch.arange(self.config.padded_vocab_size, device=x.device)
            mask = torch.zeros_like(ids, dtype=x.dtype).masked_fill(ids >= self.config.vocab_size, -math.inf)  # (P)
        return F.linear(x, self.lm_head.weight, mask)

    def param_groups(self, weight_decay: float) -> list[dict]:
        """Two groups for an optimizer: weight decay for parameters of two or more dimensions, none for biases and
        norms. The tied weight comes once."""
        decayed = [p for p in self.parameters() if p.dim() >= 2]
        plain = [p for p in self.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def num_parameters(self) -> int:
        """Number of parameters; the tied weight counts once, padding rows do not (GPT-2 small: 124,439,808)."""
        padding = (self.config.padded_vocab_size - self.config.vocab_size) * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - padding

    def flops_per_token(self, T: int | None = None) -> int:
        """Floating-point operations of one token's forward and backward pass at sequence length T (PaLM, appendix B).

        Matmuls only, 2 operations per multiply-add, backward twice forward: the weights of each block (12 C^2),
        attention's two products (2 T C, the causal half not discounted), and the head without its padding (V C).
        """
        c = self.config
        T = c.block_size if T is None else T
        multiply_adds = c.n_layer * (12 * c.n_embd**2 + 2 * T * c.n_embd) + c.vocab_size * c.n_embd
        return 3 * 2 * multiply_adds

    @torch.no_grad()
    def generate(
        self, idx: torch.Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None
    ) -> torch.Tensor:
        """Continue the token ids (B, T) by max_new_tokens each; temperature 0 always takes the likeliest token.

        Raises ValueError if the logits are NaN.
        """
        for i in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.block_size :])
            logits = logits[:, -1, :].float()  # (B, P)
            if i == 0 and logits.isnan().any():
                raise ValueError("the model gives NaN: choose an earlier checkpoint")
            if temperature == 0:
                token = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
            else:
                if top_k is not None:
                    kth = logits.topk(min(top_k, self.config.vocab_size)).values[:, [-1]]  # (B, 1)
                    logits = logits.masked_fill(logits < kth, -math.inf)
                logits = logits - logits.amax(-1, keepdim=True)  # so that no temperature overflows
                logits = logits / max(temperature, torch.finfo(torch.float32).tiny)
                token = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)  # (B, 1)
            idx = torch.cat((idx, token), dim=1)  # (B, T + 1)
        return idx


# Dense bfloat16 operations per second, from data sheets. The first name contained in the device's name counts.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak for model FLOP utilisation; None where unknown: on a CPU, in another dtype than bfloat16."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
