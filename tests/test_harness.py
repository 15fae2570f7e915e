"""lm_eval's protocol against lm-evaluation-harness itself, offline: its tasks, its `hf` model, and our adapter.

The tasks are the harness's own files; only where their documents come from is changed, to local ones.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate as ours
from data import texts
from data.download import mirrored
from evaluation import perplexity
from model import GPT, GPTConfig
from runtime import checkpoint, huggingface

pytest.importorskip("lm_eval", reason="needs the extra `harness`")
if not mirrored("wiki.test.raw"):
    pytest.skip("DATA_MIRROR has no wiki.test.raw", allow_module_level=True)

ROWS, PASSAGES, BLOCK = 110, 60, 128
ROOT = Path(__file__).resolve().parents[1]
# a process of its own, from another folder: the harness may import Hugging Face's `evaluate`, the tests import ours
THEIRS = """
import json, sys
from pathlib import Path
import lm_eval, lm_eval.models, torch
from lm_eval.tasks import TaskManager
torch.set_num_threads(1)
folder = Path(sys.argv[1])
manager = TaskManager(include_path=str(folder / "tasks"))
results = {}
models = {"hf": ("hf", {"pretrained": str(folder / "hf"), "device": "cpu", "dtype": "float32"})}
if len(sys.argv) > 2:
    sys.path.append(sys.argv[2])
    from evaluation import harness
    models["nanomada"] = ("nanomada", {"out_dir": str(folder / "run"), "device": "cpu"})
for name, (model, arguments) in models.items():
    found = lm_eval.simple_evaluate(model=model, model_args=arguments, tasks=["wikitext_local", "lambada_local"],
                                    task_manager=manager, batch_size=4, bootstrap_iters=0)
    results[name] = found["results"]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its export, and the harness's tasks on local documents."""
    folder = tmp_path_factory.mktemp("harness")
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(block_size=BLOCK, n_layer=1, n_head=2, n_embd=16, vocab_multiple=64, bias=False))
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(0.1 * torch.randn_like(p))
    content = {"config": {"dataset": "openwebtext"}, "model_config": dataclasses.asdict(gpt.config),
               "model": gpt.state_dict()}  # fmt: skip
    (folder / "run").mkdir()
    checkpoint.save(folder / "run", 3, None, content, keep=1)
    assert huggingface.save(gpt, folder / "hf")

    articles = list(perplexity.wikitext_documents(wikitext_rows()))
    assert len(articles) > 1
    write_lines(folder / "wikitext.jsonl", [{"page": article} for article in articles])
    write_lines(folder / "lambada.jsonl", [{"text": text} for text in passages(gpt)])
    (folder / "tasks").mkdir()
    for task, theirs in (("wikitext", "wikitext/wikitext.yaml"), ("lambada", "lambada/lambada_openai.yaml")):
        import lm_eval.tasks

        path = Path(lm_eval.tasks.__file__).parent / theirs
        text = re.sub(r"^task: .*$", f"task: {task}_local", path.read_text(), flags=re.M)
        text = re.sub(r"^dataset_path: .*$", "dataset_path: json", text, flags=re.M)
        data_files = json.dumps({"data_files": {"test": str(folder / f"{task}.jsonl")}})
        text = re.sub(r"^dataset_name: .*$", f"dataset_kwargs: {data_files}", text, flags=re.M)
        text = re.sub(r"^(training|validation)_split: .*\n", "", text, flags=re.M)
        (folder / "tasks" / f"{task}_local.yaml").write_text(text)
        for helper in path.parent.glob("*.py"):
            (folder / "tasks" / helper.name).write_bytes(helper.read_bytes())
    return folder


def wikitext_rows() -> list[str]:
    return list(texts("wikitext2", "test"))[:ROWS]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def passages(gpt: GPT) -> list[str]:
    """LAMBADA's, the last word of every third one replaced by what this model says, so that accuracy is not 0."""
    tokenizer, rows = perplexity.GPT2Tokenizer(), []
    for i, text in enumerate(list(texts("lambada_openai", "test"))[:PASSAGES]):
        context = text.rpartition(" ")[0]
        if i % 3 == 0:
            ids = torch.from_numpy(tokenizer.encode(context).astype("int64"))[None]
            with torch.no_grad():
                logits = gpt(ids[:, -BLOCK:])[0][0, -1]
            words = (tokenizer.decode([int(token)]) for token in logits.argsort(descending=True))
            text = context + next(word for word in words if re.fullmatch(r" [a-z]+", word))
        rows.append(text)
    return rows


@pytest.fixture(scope="module")
def theirs(folder: Path) -> dict:
    paths = [path for path in sys.path if path and Path(path).resolve() not in (ROOT, ROOT / "tests")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"), "DATA_MIRROR": str(Path(os.environ["DATA_MIRROR"]).resolve()),
    }  # fmt: skip
    command = [sys.executable, "-c", THEIRS, str(folder), str(ROOT)]
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", ["hf", "nanomada"])
def test_numbers_are_those_of_the_harness(folder: Path, theirs: dict, model: str, monkeypatch) -> None:
    lines = (folder / "lambada.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {"wikitext2": wikitext_rows(), "lambada_openai": [json.loads(line)["text"] for line in lines]}
    monkeypatch.setattr(ours, "texts", lambda name, split: iter(rows[name]))
    found = {}
    for name in rows:
        path = folder / f"{name}.json"
        assert ours.main([f"--out_dir={folder / 'run'}", f"--dataset={name}", "--protocol=lm_eval", f"--json={path}",
                          "--device=cpu"]) == 0  # fmt: skip
        found[name] = json.loads(path.read_text())["rows"][0]
    wikitext, lambada = theirs[model]["wikitext_local"], theirs[model]["lambada_local"]
    assert found["wikitext2"]["perplexity"] == pytest.approx(wikitext["word_perplexity,none"], rel=1e-5)
    assert found["lambada_openai"]["perplexity"] == pytest.approx(lambada["perplexity,none"], rel=1e-5)
    assert found["lambada_openai"]["accuracy"] == lambada["acc,none"]
    assert 0.03 < lambada["acc,none"] < 0.9  # something to differ in


def test_texts_of_wikitext_are_those_of_the_harness() -> None:
    """All 62 documents through the harness's own functions: detokenised text, and words."""
    from lm_eval.tasks.wikitext import preprocess_wikitext

    documents = list(perplexity.wikitext_documents(texts("wikitext2", "test")))
    words = 0
    for document in documents:
        assert perplexity.detokenized(document) == preprocess_wikitext.wikitext_detokenizer({"page": document})
        words += preprocess_wikitext.process_results({"page": document}, [0.0])["word_perplexity"][1]
    stream, windows = perplexity.wikitext_stream(texts("wikitext2", "test"), perplexity.GPT2Tokenizer(), 1024)
    assert stream.words == words
    assert windows.scored.sum() == stream.tokens - len(documents)
