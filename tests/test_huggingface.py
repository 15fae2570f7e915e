"""Weights to Hugging Face's format and back, judged by transformers where it is installed."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import export
from data import texts
from data.download import mirrored
from data.tokenizer import GPT2Tokenizer
from evaluation import perplexity
from model import GPT, GPTConfig
from runtime import checkpoint, huggingface
from runtime.checkpoint import CheckpointError
from runtime.parallel import World

SMALL = GPTConfig(block_size=16, vocab_size=101, n_layer=2, n_head=3, n_embd=24, vocab_multiple=64)
ALONE = World(0, 1, torch.device("cpu"), torch.float32)


def random_gpt(config: GPTConfig) -> GPT:
    """With biases and norms that are not 0 and 1: a mistake in them shows."""
    torch.manual_seed(0)
    gpt = GPT(config)
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return gpt.eval()


def logits(gpt: GPT, idx: torch.Tensor) -> torch.Tensor:
    """(B, T, P), of every position."""
    return gpt.head(gpt.hidden(idx))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    huggingface.save(random_gpt(SMALL), tmp_path / "hf")
    return tmp_path / "hf"


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in {**json.loads(path.read_text()), **values}.items() if v != "absent"}))


def change_tensors(folder: Path, **values: torch.Tensor | None) -> None:
    tensors = {**load_file(folder / "model.safetensors"), **{k.replace("__", "."): v for k, v in values.items()}}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_those_of_transformers(bias: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    gpt = random_gpt(dataclasses.replace(SMALL, bias=bias))
    huggingface.save(gpt, tmp_path / "hf")
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    idx = torch.randint(0, SMALL.vocab_size, (3, SMALL.block_size))
    with torch.no_grad():
        ours = logits(gpt, idx)[..., : SMALL.vocab_size]
        torch.testing.assert_close(theirs.eval()(idx).logits, ours, rtol=0, atol=1e-5)
    assert ours.std() > 0.5  # something to differ


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    shape = {"vocab_size": 101, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, initializer_range=0.3)).eval()
    theirs.save_pretrained(tmp_path)
    ours, idx = huggingface.load(tmp_path).eval(), torch.randint(0, 101, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, idx), theirs(idx).logits, rtol=0, atol=1e-5)


@pytest.mark.skipif(not mirrored("wiki.test.raw"), reason="DATA_MIRROR has no wiki.test.raw")
def test_strided_perplexity_is_that_of_transformers(tmp_path: Path) -> None:
    """The loop of transformers' guide, with each window's sum over the tokens that its labels leave."""
    transformers = pytest.importorskip("transformers")
    gpt = random_gpt(GPTConfig(block_size=64, n_layer=1, n_head=2, n_embd=16, vocab_multiple=64))
    assert huggingface.save(gpt, tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = list(texts("wikitext2", "test"))[:40]
    ids = tokenizer("\n\n".join(rows), return_tensors="pt").input_ids
    previous, nll, count = 0, 0.0, 0
    for begin in range(0, ids.size(1), 32):
        end = min(begin + 64, ids.size(1))
        inputs, labels = ids[:, begin:end], ids[:, begin:end].clone()
        labels[:, : -(end - previous)] = -100
        scored = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            nll += theirs(inputs, labels=labels).loss.item() * scored
        previous, count = end, count + scored
        if end == ids.size(1):
            break
    stream = perplexity.joined_stream(rows, GPT2Tokenizer())
    windows = perplexity.strided_windows(stream.tokens, 64, 32)
    ours = perplexity.score(gpt, stream, windows, 8, ALONE).nll.sum()
    assert windows.scored.sum() == count == ids.size(1) - 1 > 1500
    assert math.exp(ours / count) == pytest.approx(math.exp(nll / count), rel=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_there_and_back(bias: bool, tmp_path: Path) -> None:
    gpt = random_gpt(dataclasses.replace(SMALL, bias=bias))
    huggingface.save(gpt, tmp_path)
    back = huggingface.load(tmp_path)
    assert back.config == gpt.config
    assert back.lm_head.weight is back.transformer["wte"].weight
    for name, tensor in gpt.state_dict().items():
        assert torch.equal(back.state_dict()[name][: len(tensor) if "wte" not in name and "lm" not in name else 101],
                           tensor[: len(tensor) if "wte" not in name and "lm" not in name else 101]), name
    idx = torch.randint(0, 101, (2, 16))
    assert torch.equal(logits(back.eval(), idx), logits(gpt, idx))


def test_names_of_released_files_are_read(folder: Path) -> None:
    """Without the prefix, with the masks that old versions stored, and with a head that repeats the embedding."""
    before = huggingface.load(folder)
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    tensors["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    change_config(folder, nanomada="absent", n_ctx="absent", tie_word_embeddings="absent")
    after = huggingface.load(folder, vocab_multiple=64)
    assert after.config == before.config
    assert all(torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True))


def test_padding_is_for_the_reader_to_choose(folder: Path) -> None:
    wide = huggingface.load(folder, vocab_multiple=16)
    assert wide.lm_head.weight.shape == (112, 24)
    assert (wide.lm_head.weight[101:] == 0).all() and (wide.lm_head.weight[:101] != 0).any(dim=1).all()
    assert load_file(folder / "model.safetensors")["transformer.wte.weight"].shape == (101, 24)


def test_half_precision_is_read_as_float32(folder: Path) -> None:
    tensors = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    gpt = huggingface.load(folder)
    assert {p.dtype for p in gpt.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"transformer__h__1__mlp__c_fc__weight": None}, r"lacks transformer\.h\.1\.mlp\.c_fc\.weight, which config"),
        ({"transformer__h__1__mlp__c_fc__weight": torch.zeros(96, 24)},
         r"h\.1\.mlp\.c_fc\.weight is torch\.float32 of shape \(96, 24\), config\.json .* of shape \(24, 96\)"),
        ({"transformer__h__2__ln_1__weight": torch.zeros(24)}, r"holds transformer\.h\.2\.ln_1\.weight, which a GPT-2"),
        ({"lm_head__weight": torch.zeros(101, 24)}, "lm_head.weight is not the token embedding"),
        ({"transformer__ln_f__bias": torch.zeros(24, dtype=torch.int64)}, r"ln_f\.bias is torch\.int64"),
    ],
)
def test_wrong_tensors_are_refused_by_name(folder: Path, values, message: str) -> None:
    change_tensors(folder, **values)
    with pytest.raises(CheckpointError, match=message):
        huggingface.load(folder)


def test_biases_of_a_model_without_are_refused(folder: Path) -> None:
    change_config(folder, nanomada={"bias": False})
    with pytest.raises(CheckpointError, match=r"is not zero, but config\.json says that there are no biases"):
        huggingface.load(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated, unreadable or not a safetensors file"):
        huggingface.load(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'; only GPT-2 with 'gelu_new'"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_layer": "absent"}, "config.json has no entry 'n_layer'"),
        ({"n_head": 5}, "n_embd=24 is not divisible by n_head=5"),
        ({"n_embd": "24"}, "n_embd is '24', not a whole number"),
    ],
)
def test_another_architecture_is_refused(folder: Path, values, message: str) -> None:
    change_config(folder, **values)
    with pytest.raises(CheckpointError, match=message):
        huggingface.load(folder)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        huggingface.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is no description of a GPT-2"):
        huggingface.load(folder)
    with pytest.raises(CheckpointError, match=r"no weights 'gpt2-huge': .*`hf download openai-community/gpt2-huge"):
        huggingface.load("gpt2-huge")


def test_another_name_of_the_activation_is_taken(folder: Path) -> None:
    before = huggingface.load(folder).state_dict()
    change_config(folder, activation_function="gelu_pytorch_tanh", n_inner=4 * SMALL.n_embd)
    assert all(torch.equal(tensor, before[name]) for name, tensor in huggingface.load(folder).state_dict().items())
    transformers = pytest.importorskip("transformers")
    x = torch.linspace(-5, 5, 101)
    theirs = [transformers.activations.ACT2FN[name](x) for name in ("gelu_new", "gelu_pytorch_tanh")]
    torch.testing.assert_close(*theirs)


@pytest.mark.parametrize("kind", ["shards", "bin"])
def test_other_forms_of_weights_are_named_with_a_command_that_converts_them(folder: Path, kind: str, capsys) -> None:
    transformers = pytest.importorskip("transformers")
    expected = huggingface.load(folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
    other = folder.parent / "other"
    if kind == "shards":
        theirs.save_pretrained(other, max_shard_size="20KB")
        assert len(list(other.glob("model-*.safetensors"))) > 1
    else:
        other.mkdir()
        (other / "config.json").write_bytes((folder / "config.json").read_bytes())
        torch.save(theirs.state_dict(), other / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"not model\.safetensors alone: write that with") as refused:
        huggingface.load(other)
    message = str(refused.value)
    assert ("model-00001-of-" if kind == "shards" else "pytorch_model.bin") in message and "\n" not in message
    code = re.search(r"python -c \"(.*)\"", message)[1]  # type: ignore[index]
    exec(code, {})
    back = huggingface.load(f"{other}-one", vocab_multiple=64)
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), expected.parameters(), strict=True))


def test_paths_that_cannot_be_read_are_one_line(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in ((tmp_path / "loop", "Too many levels of symbolic links"), ("x" * 300, "File name too long"),
                          ("a\0b", "null byte")):  # fmt: skip
        with pytest.raises(CheckpointError, match=f"cannot be read .*{message}"):
            huggingface.load(name)
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "moved")
    weights.symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated, unreadable"):
        huggingface.load(folder)


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert huggingface.load("~/hf").config == SMALL
    assert export.main(["--from_folder", "--folder=~/hf", "--out_dir=~/run"]) == 0
    assert export.main(["--out_dir=~/run", "--folder=~/again"]) == 0
    assert export.main(["--out_dir=~/run", "--folder=~/one", "--one_file"]) == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["again", "hf", "one", "run"]


def test_huge_numbers_in_a_config_are_refused_at_once(folder: Path) -> None:
    change_config(folder, n_layer=10**9)
    with pytest.raises(CheckpointError, match=r"lacks transformer\.h\.2\.ln_1\.weight, which config\.json calls for"):
        huggingface.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_export_overwrites_only_when_told(tmp_path: Path, name: str) -> None:
    gpt = random_gpt(SMALL)
    (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match=f"{name} exists already: choose another folder, or overwrite it with"):
        huggingface.save(gpt, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"
    huggingface.save(gpt, tmp_path, overwrite=True)
    assert huggingface.load(tmp_path).config == SMALL


def test_names_are_looked_up_in_the_mirror(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_MIRROR", str(folder.parent))
    assert huggingface.load("hf").config == SMALL


XL = GPTConfig(block_size=1024, vocab_size=50257, n_layer=48, n_head=25, n_embd=1600)


def test_gpt2_xl_has_the_released_parameters_and_names() -> None:
    with torch.device("meta"):
        gpt = GPT(XL)
    assert gpt.num_parameters() == sum(p.numel() for p in gpt.parameters()) == 1_557_611_200
    names = dict(huggingface.tensors_of(XL))
    assert sum(math.prod(shape) for shape in names.values()) == 1_557_611_200
    assert len(names) == 2 + 48 * 12 + 2  # as many as GPT-2 XL's file holds, without 48 masks
    own = gpt.state_dict()
    assert own.keys() == {*names, "lm_head.weight"}
    for name, shape in names.items():
        assert tuple(own[name].T.shape if name.endswith(huggingface.TRANSPOSED) else own[name].shape) == shape, name
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        shape = {"n_embd": 1600, "n_layer": 48, "n_head": 25}
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).state_dict()
    assert {k: tuple(t.shape) for k, t in theirs.items() if k != "lm_head.weight"} == names


def test_positions_are_cropped_and_no_more_are_made_up(folder: Path) -> None:
    whole, cropped = huggingface.load(folder).eval(), huggingface.load(folder, block_size=5).eval()
    assert cropped.config == dataclasses.replace(SMALL, block_size=5)
    idx = torch.randint(0, 101, (2, 5))
    torch.testing.assert_close(logits(cropped, idx), logits(whole, idx))
    with pytest.raises(CheckpointError, match="block_size=17 is more than the 16 positions of"):
        huggingface.load(folder, block_size=17)


def test_released_weights_are_downloaded_at_their_revision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.delenv("DATA_MIRROR", raising=False)
    monkeypatch.chdir(folder.parent)
    asked = []

    def download(repository: str, file: str, revision: str) -> str:
        asked.append((repository, file, revision))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert huggingface.load("gpt2-xl").config == SMALL
    revision = "15ea56dee5df4983c59b2538573817e1667135e2"
    assert set(asked) == {("openai-community/gpt2-xl", f, revision) for f in ("config.json", "model.safetensors")}

    def fail(*_: object, **__: object) -> str:
        raise OSError("no network\nhere")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    message = r"^no weights 'gpt2': .*no download \(no network\).*--revision 607a[^\n]*$"
    with pytest.raises(CheckpointError, match=message):
        huggingface.load("gpt2")


def test_export_writes_a_run_and_reads_it_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    gpt = random_gpt(SMALL)
    content = {"config": {"dataset": "words"}, "model_config": dataclasses.asdict(SMALL), "model": gpt.state_dict()}
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run", 7, 1.0, content, keep=1)
    hf = f"--folder={tmp_path / 'hf'}"
    assert export.main([f"--out_dir={tmp_path / 'run'}", hf]) == 0
    assert "without a tokenizer" in capsys.readouterr().out  # its vocabulary is not GPT-2's
    assert export.main([f"--out_dir={tmp_path / 'back'}", hf, "--from_folder", "--dataset=words"]) == 0
    back = checkpoint.load(checkpoint.newest(tmp_path / "back"))
    assert back["model_config"] == dataclasses.asdict(SMALL)
    assert torch.equal(back["model"]["transformer.wpe.weight"], gpt.state_dict()["transformer.wpe.weight"])
    for argv, message in (
        ([f"--out_dir={tmp_path / 'run'}", hf], "exists already: choose another folder, or overwrite it with --force"),
        ([f"--out_dir={tmp_path / 'run'}", hf, "--from_folder"], "holds a run already"),
        ([f"--out_dir={tmp_path / 'none'}", hf], "no complete checkpoint"),
        ([], "name a folder with --folder"),
        ([f"--out_dir={tmp_path / 'run'}", f"--folder={'x' * 300}"], "File name too long"),
        ([f"--out_dir={'x' * 300}", hf, "--from_folder"], "File name too long"),
        ([f"--out_dir={tmp_path / 'run'}", f"--folder={'x' * 300}", "--one_file"], "File name too long"),
        ([f"--out_dir={tmp_path / 'run'}", "--folder=/dev/null/x"], "cannot be written"),
    ):
        capsys.readouterr()
        assert export.main(argv) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_ids_of_the_exported_tokenizer_are_ours(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not mirrored("tiktoken_cache"):
        pytest.skip("DATA_MIRROR has no tiktoken_cache")
    assert huggingface.save(GPT(GPTConfig(block_size=8, n_layer=1, n_head=1, n_embd=2)), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello  world!\n\n naïve – 你好 👍\t'll 1234", "\n", " the \n "):
        assert theirs.encode(text) == GPT2Tokenizer().encode(text).tolist()
    np.testing.assert_equal(theirs.eos_token_id, GPT2Tokenizer.end_of_text)
