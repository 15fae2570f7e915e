"""GPT-2 weights in Hugging Face's format, in and out: a folder with config.json and model.safetensors.

The same weights under the same names, with these differences: the matrices of a block are transposed, (in, out); biases
always exist; the vocabulary is not padded; the tied head is not stored. Released files leave out the prefix
`transformer.` and contain constant masks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from cli import reason

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data import DataError
from data.download import mirrored
from data.manifest import read_json
from data.tokenizer import GPT2Tokenizer, gpt2_encoding
from model import GPT, GPTConfig
from runtime.checkpoint import CheckpointError, require_finite

RELEASED = {  # OpenAI's own, in the repositories openai-community/NAME, at these revisions
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",  # 124M
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",  # 355M
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",  # 774M
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",  # 1.5B
}
WEIGHTS = "model.safetensors"
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")  # stored by old versions; not weights
SETTINGS: dict[str, Any] = {  # of the architecture of model.py; in a config.json, absent means this value
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_inner": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def tensors_of(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every stored tensor, without the padding of the vocabulary; C = n_embd."""
    C = config.n_embd
    yield "transformer.wte.weight", (config.vocab_size, C)
    yield "transformer.wpe.weight", (config.block_size, C)
    for i in range(config.n_layer):
        for name, shape in (("ln_1", (C,)), ("attn.c_attn", (C, 3 * C)), ("attn.c_proj", (C, C)),
                            ("ln_2", (C,)), ("mlp.c_fc", (C, 4 * C)), ("mlp.c_proj", (4 * C, C))):
            yield f"transformer.h.{i}.{name}.weight", shape
            yield f"transformer.h.{i}.{name}.bias", shape[-1:]
    yield "transformer.ln_f.weight", (C,)
    yield "transformer.ln_f.bias", (C,)


def save(model: GPT, folder: str | Path, overwrite: bool = False) -> bool:
    """Write a model for transformers' GPT2LMHeadModel; with GPT-2's tokenizer, if that is its own: then returns True.

    The padding rows of the embedding are cut off: transformers would give them probability. Biases that the model does
    not have are written as zeros. config.json is written last, so a folder that has one is complete.

    Raises:
        CheckpointError: the folder holds a file of these names already (unless `overwrite`), or cannot be written.
    """
    folder, config = Path(folder), model.config
    own = model.state_dict()
    tensors = {}
    for name, shape in tensors_of(config):
        tensor = own[name].detach().cpu().float() if name in own else torch.zeros(shape)
        tensor = tensor.T if name.endswith(TRANSPOSED) else tensor[: shape[0]]
        assert tensor.shape == shape, name
        tensors[name] = tensor.contiguous()
    text = config.vocab_size == GPT2Tokenizer.vocab_size
    end = GPT2Tokenizer.end_of_text if text else None
    facts = SETTINGS | {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size, "n_positions": config.block_size, "n_ctx": config.block_size,
        "n_embd": config.n_embd, "n_layer": config.n_layer, "n_head": config.n_head,
        "attn_pdrop": config.dropout, "embd_pdrop": config.dropout, "resid_pdrop": config.dropout,
        "bos_token_id": end, "eos_token_id": end, "torch_dtype": "float32",
        "nanomada": {"bias": config.bias, "vocab_multiple": config.vocab_multiple},  # so that `load` gives this model
    }  # fmt: skip
    try:
        files = _tokenizer_files(config.block_size) if text else {}
    except DataError:  # not available on this machine; the weights are what matters
        files = {}
    partial = folder / f".model.{os.getpid()}.partial"
    try:
        if there := [name for name in (WEIGHTS, "config.json", *files) if (folder / name).exists() and not overwrite]:
            raise CheckpointError(f"{folder / there[0]} exists already: choose another folder, or overwrite it with "
                                  "--force")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
        try:
            save_file(tensors, partial, metadata={"format": "pt"})
            os.replace(partial, folder / WEIGHTS)
        finally:
            partial.unlink(missing_ok=True)
        for name, content in (files | {"config.json": (json.dumps(facts, indent=2) + "\n").encode()}).items():
            (folder / name).write_bytes(content)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be written ({reason(error)})") from None
    return bool(files)


def load(
    name: str | Path, vocab_multiple: int | None = None, dropout: float = 0.0, block_size: int | None = None
) -> GPT:
    """A model from `find(name)`, in float32 on the CPU.

    Args:
        vocab_multiple: rows of the embedding are padded with zeros to a multiple of this; None: as it was saved.
        block_size: positions to keep, the first ones; None: all.

    Raises:
        CheckpointError: as `describe`; a file that is missing, truncated or not safetensors; a tensor that is missing,
            unknown, or of another shape.
    """
    folder = find(name)
    stored, path = _config(folder), _weights_file(folder)
    config = dataclasses.replace(describe(folder, block_size), dropout=dropout,
                                 vocab_multiple=vocab_multiple or stored.vocab_multiple)
    try:
        tensors = {key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}": tensor
                   for key, tensor in load_file(path).items() if not MASKS.fullmatch(key)}  # fmt: skip
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated, unreadable or not a safetensors file ({reason(error)})") from None
    if missing := next((name for name, _ in tensors_of(stored) if name not in tensors), None):
        raise CheckpointError(f"{path} lacks {missing}, which config.json calls for")
    head, embedding = tensors.pop("lm_head.weight", None), tensors["transformer.wte.weight"]
    if head is not None and not torch.equal(head, embedding):
        raise CheckpointError(f"{path}: lm_head.weight is not the token embedding, but GPT-2 ties the two")
    with torch.device("meta"):  # skips the random initialization
        model = GPT(config)
    model.to_empty(device="cpu")
    model.lm_head.weight = model.transformer["wte"].weight  # type: ignore[assignment]  # to_empty unties them
    own = model.state_dict()
    own["transformer.wte.weight"][config.vocab_size :] = 0  # padding
    for name, shape in tensors_of(stored):
        tensor = tensors.pop(name)
        if tensor.shape != shape or not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, config.json calls "
                                  f"for floating-point numbers of shape {shape}")
        if name in own:
            tensor = tensor.T if name.endswith(TRANSPOSED) else tensor
            n = min(len(tensor), len(own[name]))  # tokens without the padding; positions up to block_size
            own[name][:n].copy_(tensor[:n])
        elif tensor.any():
            raise CheckpointError(f"{path}: {name} is not zero, but config.json says that there are no biases")
    if tensors:
        raise CheckpointError(f"{path} holds {_some([*tensors])}, which a GPT-2 does not have")
    require_finite(model, path)
    return model


def _weights_file(folder: Path) -> Path:
    """model.safetensors of a folder that has a config.json. Raises CheckpointError, naming other forms of weights."""
    path = folder / WEIGHTS
    if os.path.lexists(path):
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a regular file")
        return path
    others = sorted(found.name for found in folder.glob("*") if found.suffix in (".safetensors", ".bin"))
    if not others:
        raise CheckpointError(f"{folder} has a config.json but no {WEIGHTS}: copy that file there as well")
    raise CheckpointError(
        f"{folder} holds {_some(others)}, not {WEIGHTS} alone: write that with transformers, `python -c \"from "
        f"transformers import GPT2LMHeadModel as M; M.from_pretrained('{folder}').save_pretrained('{folder}-one', "
        f"max_shard_size='1TB')\"`, and name {folder}-one")


def describe(name: str | Path, block_size: int | None = None) -> GPTConfig:
    """The config of `find(name)`, with the first block_size positions (None: all).

    Raises:
        CheckpointError: no such weights; another architecture; fewer positions than block_size.
    """
    folder = find(name)
    config = _config(folder)
    if (block_size or 0) > config.block_size:
        raise CheckpointError(f"block_size={block_size} is more than the {config.block_size} positions of {folder}")
    return dataclasses.replace(config, block_size=block_size or config.block_size)


def known(name: str) -> bool:
    """Whether `name` is that of released weights, or of a folder with config.json, here or in DATA_MIRROR."""
    return name in RELEASED or _folder(name) is not None


def find(name: str | Path) -> Path:
    """The folder of that name, here or in DATA_MIRROR, or that of released weights, downloaded into the hub's cache."""
    if folder := _folder(name):
        return folder
    repository = str(name) if "/" in str(name) else f"openai-community/{name}"  # OpenAI's have one-word names
    why, revision = "it is neither a folder with config.json nor one in DATA_MIRROR", RELEASED.get(str(name))
    if revision:
        from huggingface_hub import hf_hub_download  # half a second, only needed here

        try:
            paths = [hf_hub_download(repository, file, revision=revision) for file in ("config.json", WEIGHTS)]
            return Path(paths[0]).parent
        except (OSError, ValueError) as error:  # the base classes of its errors
            first = reason(error).partition("\n")[0]
            why = f"no folder of that name, none in DATA_MIRROR, and no download ({first})"
    raise CheckpointError(
        f"no weights {str(name)!r}: {why}. For released ones, on a machine with internet: `hf download {repository} "
        f"config.json {WEIGHTS}{f' --revision {revision}' if revision else ''} --local-dir mirror/{name}`, and set "
        "DATA_MIRROR to that `mirror`")


def _folder(name: str | Path) -> Path | None:
    """A folder of that name with a config.json; None where there is none. Raises CheckpointError: it cannot be read."""
    try:
        for folder in (Path(os.path.expanduser(name)), mirrored(str(name))):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if folder and stat.S_ISREG((folder / "config.json").stat().st_mode):
                    return folder
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the weights {str(name)!r} cannot be read ({reason(error)})") from None
    return None


def _config(folder: Path) -> GPTConfig:
    """As it was saved."""
    path = folder / "config.json"
    try:
        facts = read_json(path)
        if {"config", "commit"} <= facts.keys():  # written by train.py
            raise CheckpointError(f"{folder} is a run of train.py, not a folder in Hugging Face's format: name it with "
                                  f"--out_dir={folder} (train.py goes on with --init_from=resume, or from the path of "
                                  "one of its ckpt_*)")
        for key, value in SETTINGS.items():
            found = facts.get(key, value)
            if (key, found) in (("activation_function", "gelu_pytorch_tanh"), ("n_inner", 4 * facts.get("n_embd", 0))):
                continue  # other names of the same
            if found != value:
                raise CheckpointError(f"{path}: {key} is {found!r}; only GPT-2 with {value!r} is known here")
        ours = facts.get("nanomada", {})
        shape = {key: facts[key] for key in ("vocab_size", "n_layer", "n_head", "n_embd")}
        shape |= {"block_size": facts.get("n_positions", facts.get("n_ctx")), "bias": ours.get("bias", True),
                  "vocab_multiple": ours.get("vocab_multiple", 1)}
        whole = {f.name for f in dataclasses.fields(GPTConfig)} - {"dropout", "bias"}
        if wrong := [key for key in whole if type(shape[key]) is not int or shape[key] < 1]:
            raise CheckpointError(f"{path}: {wrong[0]} is {shape[wrong[0]]!r}, not a whole number of 1 or more")
        return GPTConfig(**shape)
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{path} has no entry {error}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no description of a GPT-2 ({reason(error)})") from None


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _tokenizer_files(block_size: int) -> dict[str, bytes]:
    """GPT-2's tokenizer for transformers: the files of tiktoken's cache under other names. Raises DataError."""
    from tiktoken.load import read_file_cached

    gpt2_encoding()  # downloads what is not cached
    url = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": block_size, "add_prefix_space": False}
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return {
        "merges.txt": read_file_cached(url + "vocab.bpe"),
        "vocab.json": read_file_cached(url + "encoder.json"),
        "tokenizer_config.json": json.dumps(settings | ends, indent=2).encode(),
    }
