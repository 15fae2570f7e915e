"""GPT-2 weights in Hugging Face's format, in and out: a folder with config.json and model.safetensors.

The same weights under almost the same names. What differs there: the matrices of a block are `Conv1D`s and lie
transposed, (in, out); biases always exist; the vocabulary is not padded; the tied head is not stored. Released files
leave out the prefix `transformer.` and hold constant masks besides.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data import DataError
from data.download import mirrored
from data.tokenizer import GPT2Tokenizer, gpt2_encoding
from model import GPT, GPTConfig
from runtime.checkpoint import CheckpointError

RELEASED = {  # OpenAI's own, in the repositories openai-community/NAME, at these revisions
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",  # 124M
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",  # 355M
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",  # 774M
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",  # 1.5B
}
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")  # of old versions; no weights
SETTINGS: dict[str, Any] = {  # what our GPT-2 is: another value would give other logits. Absent is the same.
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


def save(model: GPT, folder: str | Path) -> bool:
    """Write a model for transformers' GPT2LMHeadModel; whether GPT-2's tokenizer lies beside it (if that is its own).

    The padding rows of the embedding are cut off: there, nothing would keep them from taking probability. Biases that
    the model does not have are written as zeros. config.json comes last, so a folder that has one is complete.

    Raises:
        CheckpointError: the folder holds a model already, or cannot be written.
    """
    folder, config = Path(folder), model.config
    if (folder / "config.json").exists():
        raise CheckpointError(f"{folder} holds a model already: choose another folder, or delete its config.json")
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
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".model.{os.getpid()}.partial"
        try:
            save_file(tensors, partial, metadata={"format": "pt"})
            os.replace(partial, folder / "model.safetensors")
        finally:
            partial.unlink(missing_ok=True)
        try:
            files = _tokenizer_files(config.block_size) if text else {}
        except DataError:  # not to be had on this machine; the weights are what counts
            files = {}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be written ({error})") from None
    return bool(files)


def load(
    name: str | Path, vocab_multiple: int | None = None, dropout: float = 0.0, block_size: int | None = None
) -> GPT:
    """A model from `find(name)`, in float32 on the CPU.

    Args:
        vocab_multiple: rows of the embedding are padded with zeros to a multiple of this; None: as it was saved.
        block_size: of the positions only these first ones are kept; None: all.

    Raises:
        CheckpointError: as `describe`; a file that is missing, truncated or no safetensors; a tensor that is missing,
            too many, or of another shape.
    """
    folder = find(name)
    stored_config = _config(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has a config.json but no model.safetensors: copy that file there as well")
    try:
        with safe_open(path, "pt") as file:
            keys = {
                key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}": key
                for key in file.keys() if not MASKS.fullmatch(key)  # noqa: SIM118 (no dict, and not iterable)
            }  # fmt: skip
            expected = dict(tensors_of(stored_config))
            if missing := [name for name in expected if name not in keys]:
                raise CheckpointError(f"{path} lacks {_some(missing)}, which config.json calls for")
            if unknown := [name for name in keys if name not in expected and name != "lm_head.weight"]:
                raise CheckpointError(f"{path} holds {_some(unknown)}, which a GPT-2 does not have")
            for name, shape in expected.items():
                found = file.get_slice(keys[name])
                if tuple(found.get_shape()) != shape:
                    raise CheckpointError(f"{path}: {name} has shape {tuple(found.get_shape())}, config.json calls for "
                                          f"{shape}")
                if found.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    raise CheckpointError(f"{path}: {name} holds {found.get_dtype()}, not numbers in floating point")
            embedding = file.get_tensor(keys["transformer.wte.weight"])
            if "lm_head.weight" in keys and not torch.equal(file.get_tensor("lm_head.weight"), embedding):
                raise CheckpointError(f"{path}: lm_head.weight is not the token embedding, but GPT-2 ties the two")

            config = dataclasses.replace(describe(folder, block_size), dropout=dropout,
                                         vocab_multiple=vocab_multiple or stored_config.vocab_multiple)
            with torch.device("meta"):  # nothing is drawn only to be overwritten
                model = GPT(config)
            model.to_empty(device="cpu")
            model.lm_head.weight = model.transformer["wte"].weight  # type: ignore[assignment]  # to_empty unties them
            own = model.state_dict()
            for name in expected:  # one at a time: the file is as large as the model
                tensor = file.get_tensor(keys[name])
                if name not in own:
                    if tensor.any():
                        raise CheckpointError(f"{path}: {name} is not zero, but config.json says that there are no "
                                              "biases")
                elif name.endswith(TRANSPOSED):
                    own[name].copy_(tensor.T)
                else:
                    n = min(len(tensor), len(own[name]))  # tokens without the padding; positions up to block_size
                    own[name][:n].copy_(tensor[:n])
            own["transformer.wte.weight"][config.vocab_size :] = 0  # padding
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error}): get it again") from None
    return model


def describe(name: str | Path, block_size: int | None = None) -> GPTConfig:
    """The config of `find(name)`, from config.json alone; of its positions the first block_size, None: all.

    Raises:
        CheckpointError: no such weights; another architecture; fewer positions than block_size.
    """
    folder = find(name)
    config = _config(folder)
    if (block_size or 0) > config.block_size:
        raise CheckpointError(f"block_size={block_size} is more than the {config.block_size} positions of {folder}")
    return dataclasses.replace(config, block_size=block_size or config.block_size)


def known(name: str) -> bool:
    """Whether a name is that of released weights, of a folder in this format, or of one in DATA_MIRROR."""
    return name in RELEASED or _folder(name) is not None


def find(name: str | Path) -> Path:
    """The folder of a name: itself, that of DATA_MIRROR, or released weights, downloaded once into the hub's cache."""
    if folder := _folder(name):
        return folder
    reason = "it is neither a folder with config.json nor one in DATA_MIRROR"
    if name in RELEASED:
        from huggingface_hub import hf_hub_download  # half a second that only this needs

        try:
            files = ("config.json", "model.safetensors")
            paths = [hf_hub_download(f"openai-community/{name}", file, revision=RELEASED[str(name)]) for file in files]
            return Path(paths[0]).parent
        except (OSError, ValueError) as error:  # its errors are of these kinds
            reason = f"no folder of that name, none in DATA_MIRROR, and no download ({str(error).splitlines()[0]})"
    repository = name if "/" in str(name) else f"openai-community/{name}"  # OpenAI's own have one-word names
    revision = f" --revision {RELEASED[str(name)]}" if name in RELEASED else ""
    raise CheckpointError(
        f"no weights {str(name)!r}: {reason}. For released ones,"
        f" on a machine with internet: `hf download {repository} config.json model.safetensors{revision} --local-dir"
        f" mirror/{name}`, and set DATA_MIRROR to that `mirror`"
    )


def _folder(name: str | Path) -> Path | None:
    places = (Path(name), mirrored(str(name)))
    return next((folder for folder in places if folder and (folder / "config.json").is_file()), None)


def _config(folder: Path) -> GPTConfig:
    """As it was saved."""
    path = folder / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if {"config", "commit"} <= facts.keys():  # what record.py writes
            raise CheckpointError(f"{folder} is a run of train.py, not a folder in Hugging Face's format: name it with "
                                  f"--out_dir={folder} (train.py goes on with --init_from=resume, or from the path of "
                                  "one of its ckpt_*)")
        for key, value in SETTINGS.items():
            found = facts.get(key, value)
            if key == "n_inner" and found == 4 * facts["n_embd"]:
                found = None  # the same said otherwise
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
        raise CheckpointError(f"{path} is no description of a GPT-2 ({error})") from None


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _tokenizer_files(block_size: int) -> dict[str, bytes]:
    """GPT-2's tokenizer for transformers: the very files that tiktoken has in its cache, under other names."""
    from tiktoken.load import read_file_cached

    gpt2_encoding()  # downloads them where they are not cached, or says why not
    url = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": block_size, "add_prefix_space": False}
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return {
        "merges.txt": read_file_cached(url + "vocab.bpe"),
        "vocab.json": read_file_cached(url + "encoder.json"),
        "tokenizer_config.json": json.dumps(settings | ends, indent=2).encode(),
    }
