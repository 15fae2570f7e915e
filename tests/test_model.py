"""GPT-2 against an independent implementation, and what model.py says about itself."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import GPT, IGNORE, GPTConfig, peak_flops
from runtime.parallel import World

SMALL = GPTConfig(block_size=8, vocab_size=13, n_layer=3, n_head=2, n_embd=12, vocab_multiple=8)


def small_gpt(**changes) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SMALL.__dict__, **changes})).double()
    with torch.no_grad():  # biases and norms start at 0 and 1, where a mistake in them would not show
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def all_logits(model: GPT, idx: torch.Tensor) -> torch.Tensor:
    """(B, T, P), of every position."""
    return model.head(model.hidden(idx))


def tokens(B: int = 2, T: int = 8) -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, (B, T), generator=torch.Generator().manual_seed(1))


def oracle(model: GPT, sequence: list[int]) -> torch.Tensor:
    """Logits (T, V) of one sequence, position by position and head by head, from the paper's formulas."""
    w = model.state_dict()
    c = model.config

    def linear(x, name):
        y = w[f"{name}.weight"] @ x
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def norm(x, name):
        centred = x - x.sum() / len(x)
        y = centred / torch.sqrt((centred**2).sum() / len(x) + 1e-5) * w[f"{name}.weight"]
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    xs = [w["transformer.wte.weight"][token] + w["transformer.wpe.weight"][t] for t, token in enumerate(sequence)]
    D = c.n_embd // c.n_head
    for layer in range(c.n_layer):
        h = f"transformer.h.{layer}"
        qkv = [linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn") for x in xs]
        for t in reversed(range(len(xs))):
            mixed = []
            for head in range(c.n_head):
                q, k, v = (slice(i * c.n_embd + head * D, i * c.n_embd + (head + 1) * D) for i in range(3))
                weights = [math.exp(qkv[t][q] @ qkv[s][k] / math.sqrt(D)) for s in range(t + 1)]
                mixed.append(sum(a * qkv[s][v] for s, a in enumerate(weights)) / sum(weights))
            xs[t] = xs[t] + linear(torch.cat(mixed), f"{h}.attn.c_proj")
            xs[t] = xs[t] + linear(gelu(linear(norm(xs[t], f"{h}.ln_2"), f"{h}.mlp.c_fc")), f"{h}.mlp.c_proj")
    logits = torch.stack([w["lm_head.weight"] @ norm(x, "transformer.ln_f") for x in xs])
    return logits[:, : c.vocab_size]


@pytest.mark.parametrize("bias", [True, False])
def test_logits_and_loss_equal_an_independent_implementation(bias: bool) -> None:
    model, idx, targets = small_gpt(bias=bias), tokens(), tokens().roll(-1)
    expected = torch.stack([oracle(model, row.tolist()) for row in idx])  # (B, T, V)
    nothing, loss = model(idx, targets)
    assert nothing is None
    logits = all_logits(model, idx)
    torch.testing.assert_close(logits[..., : SMALL.vocab_size], expected, rtol=1e-10, atol=1e-10)
    mean = -expected.log_softmax(-1).gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(loss, mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(model(idx)[0], logits[:, [-1]], rtol=1e-10, atol=1e-10)


def test_no_position_sees_what_comes_after_it() -> None:
    model, idx = small_gpt(), tokens(1)
    before = all_logits(model, idx)
    changed = idx.clone()
    changed[0, 5] = (changed[0, 5] + 1) % SMALL.vocab_size
    after = all_logits(model, changed)
    assert torch.equal(before[0, :5], after[0, :5])
    assert not torch.isclose(before[0, 5:, :13], after[0, 5:, :13]).all(dim=-1).any()


def test_padding_rows_get_no_probability_and_no_gradient() -> None:
    model, idx = small_gpt(), tokens()
    assert model.config.padded_vocab_size == 16
    logits = all_logits(model, idx)
    assert (logits[..., 13:] == -math.inf).all() and logits[..., :13].isfinite().all()
    model(idx, idx)[1].backward()
    gradient = model.lm_head.weight.grad
    assert (gradient[13:] == 0).all() and (gradient[:13] != 0).any(dim=1).all()


def test_ignored_targets_count_neither_in_the_sum_nor_in_the_mean() -> None:
    model, idx = small_gpt(), tokens()
    targets = idx.clone()
    targets[1] = IGNORE
    torch.testing.assert_close(model(idx, targets)[1], model(idx[:1], idx[:1])[1])
    torch.testing.assert_close(model(idx, targets, "sum")[1], 8 * model(idx[:1], idx[:1])[1])


def test_loss_before_training_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=65, n_layer=4, n_head=4, n_embd=64, vocab_multiple=64))
    idx = torch.randint(0, 65, (8, 33))
    assert model(idx[:, :-1], idx[:, 1:])[1].item() == pytest.approx(math.log(65), abs=0.06)


def test_residual_projections_start_smaller_with_depth() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=8, n_head=4, n_embd=128, vocab_size=300, block_size=16))
    for name, p in model.named_parameters():
        if p.dim() == 2:
            expected = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.1), name


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "parameters"), [(12, 12, 768, 124_439_808), (48, 25, 1600, 1_557_611_200)]
)
def test_parameter_counts_are_those_of_the_released_models(n_layer, n_head, n_embd, parameters) -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_multiple=64))
    assert model.num_parameters() == parameters
    assert model.lm_head.weight.shape == (50304, n_embd)


def test_state_dict_has_nanogpt_names() -> None:
    block = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    modules = [f"transformer.h.{i}.{name}" for i in range(3) for name in block] + ["transformer.ln_f"]
    names = {f"{name}.{part}" for name in modules for part in ("weight", "bias")}
    assert set(small_gpt().state_dict()) == names | {
        "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"
    }  # fmt: skip


def test_parameter_groups_are_a_partition_by_dimension() -> None:
    model = small_gpt()
    decayed, plain = model.param_groups(0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() == 2 for p in decayed["params"]) and all(p.dim() == 1 for p in plain["params"])
    assert sorted(map(id, decayed["params"] + plain["params"])) == sorted(map(id, model.parameters()))
    assert sum(p is model.lm_head.weight for p in decayed["params"]) == 1


def test_flops_equal_those_that_torch_counts() -> None:
    config = GPTConfig(block_size=16, vocab_size=24, n_layer=2, n_head=2, n_embd=8)
    model, idx = GPT(config), torch.zeros(3, 16, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(idx, idx)[1].backward()
    assert counter.get_total_flops() == model.flops_per_token() * idx.numel()


def test_generate_takes_the_likeliest_token_and_forgets_what_is_beyond_the_block() -> None:
    model, idx = small_gpt(), tokens(2, 3)
    text = model.generate(idx, 10, temperature=0)
    assert text.shape == (2, 13)
    for t in range(3, 13):
        assert torch.equal(text[:, t], model(text[:, max(0, t - 8) : t])[0][:, -1].argmax(-1))
    torch.manual_seed(3)
    assert torch.equal(model.generate(idx, 10, top_k=1), text)


def test_generate_draws_in_proportion_to_the_probabilities() -> None:
    model, idx = small_gpt(), tokens(1, 4)
    torch.manual_seed(0)
    drawn = model.generate(idx.expand(4000, -1), 1, temperature=2.0, top_k=5)[:, -1]
    logits = model(idx)[0][0, -1]
    kept = logits.topk(5).indices
    expected = F.softmax(logits[kept] / 2.0, dim=-1)
    counts = torch.stack([(drawn == token).sum() for token in kept])
    assert counts.sum() == 4000
    torch.testing.assert_close(counts / 4000, expected.float(), atol=0.04, rtol=0)


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 NVL", torch.bfloat16, 835e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA H200", torch.bfloat16, 989e12),
        ("NVIDIA H200 NVL", torch.bfloat16, 835e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ("NVIDIA H100 80GB HBM3", torch.float32, None),
        ("NVIDIA GeForce RTX 3090", torch.bfloat16, None),
    ],
)
def test_the_peak_is_that_of_the_card_in_bfloat16(name: str, dtype: torch.dtype, peak: float, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), dtype) == peak
    assert World(0, 1, torch.device("cuda"), dtype).card == name
    assert peak_flops(torch.device("cpu"), dtype) is None and World(0, 1, torch.device("cpu"), dtype).card == "cpu"


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="n_embd=10 is not divisible by n_head=4"):
        GPTConfig(n_embd=10, n_head=4)


def test_dropout_is_for_training_only() -> None:
    model, idx = small_gpt(dropout=0.5), tokens()
    assert torch.equal(model(idx, idx)[1], small_gpt()(idx, idx)[1])
    model.train()
    torch.manual_seed(0)
    losses = {model(idx, idx)[1].item() for _ in range(3)}
    assert len(losses) == 3


def test_the_blocks_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    idx, targets = torch.randint(0, 13, (2, 2, 8))
    losses, graphs = [], torch._dynamo.utils.counters["stats"]
    for compiled in (False, True):
        model = small_gpt(n_layer=12).train()
        if compiled:
            graphs.clear()
            model.compile_parts()
        for _ in range(3):
            loss = model(idx, targets)[1]
            loss.backward()
        losses.append([loss.item(), *(p.grad.norm().item() for p in model.parameters())])
    assert graphs["unique_graphs"] == 2  # of a block and of the loss, not 13
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
