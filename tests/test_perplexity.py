"""Each protocol against explicit loops over single windows, and the texts that they read."""

import math
import re

import numpy as np
import pytest
import torch

from data import DataError, texts
from data.dataset import Tokens
from data.download import mirrored
from data.tokenizer import CharTokenizer
from evaluation import perplexity
from evaluation.perplexity import Stream, Windows
from model import GPT, GPTConfig
from runtime.parallel import World

ALONE = World(0, 1, torch.device("cpu"), torch.float32)
V = 29


class Letters(CharTokenizer):
    """Characters, and one more id that ends a document."""

    end_of_text = V - 1


LETTERS = Letters("abcdefghijklmnopqrstuvwxyz \n")


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(block_size=8, vocab_size=V, n_layer=2, n_head=2, n_embd=12, vocab_multiple=8)).double()
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return gpt.eval()


def ids(n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, V, n)


def nats(model: GPT, inputs, target: int) -> tuple[float, bool]:
    """-log p(target | inputs) with a forward pass of its own, and whether target is the likeliest token."""
    logits = model(torch.tensor([[int(i) for i in inputs]]))[0][0, -1]
    return -logits.log_softmax(-1)[target].item(), logits.argmax().item() == target


def total(model: GPT, stream: Stream, windows: Windows, batch_size: int = 3) -> float:
    return perplexity.score(model, stream, windows, batch_size, ALONE).nll.sum()


@pytest.mark.parametrize("n", [2, 8, 9, 17, 40, 41])
def test_paper_reads_windows_side_by_side(model: GPT, n: int) -> None:
    x, window, expected, count = ids(n), 8, 0.0, 0
    for start in range(0, n, window):
        if start + window + 1 <= n:
            for t in range(window):
                expected += nats(model, x[start : start + t + 1], x[start + t + 1])[0]
                count += 1
    windows = perplexity.paper_windows(n, window)
    assert windows.scored.sum() == count
    assert total(model, Stream.of(x, 0), windows) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("stride", [1, 3, 4, 7])
@pytest.mark.parametrize("n", [2, 7, 8, 9, 21, 33])
def test_strided_scores_each_token_once_with_the_context_of_its_window(model: GPT, n: int, stride: int) -> None:
    x, window, expected = ids(n), 8, 0.0
    for target in range(1, n):
        begin = 0
        while begin + window <= target:  # the first window that reaches the target
            begin += stride
        expected += nats(model, x[begin:target], x[target])[0]
    windows = perplexity.strided_windows(n, window, stride)
    assert windows.scored.sum() == n - 1
    assert total(model, Stream.of(x, 0), windows) == pytest.approx(expected, rel=1e-12)


def test_strided_without_overlap_leaves_out_what_has_no_context(model: GPT) -> None:
    x = ids(17)
    expected = sum(nats(model, x[8 * (t // 8) : t], x[t])[0] for t in range(17) if t % 8)
    windows = perplexity.strided_windows(17, 8, 8)
    assert windows.scored.tolist() == [7, 7]
    assert total(model, Stream.of(x, 0), windows) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 5, 8, 9, 16, 21])
def test_rolling_scores_a_document_once_and_fills_its_last_window(model: GPT, n: int) -> None:
    document, window, expected = ids(n), 8, 0.0
    behind = [V - 1, *document]
    for t in range(n):  # behind[t + 1] is the target
        begin = 0 if t < window else n - window if t >= n // window * window else t // window * window
        expected += nats(model, behind[begin : t + 1], behind[t + 1])[0]
    stream = Stream.of(np.concatenate([[3, 3], behind]), 0)
    windows = Windows.of(perplexity.rolling_windows(2, n, window))
    assert windows.scored.sum() == n
    assert total(model, stream, windows) == pytest.approx(expected, rel=1e-12)


def test_an_empty_document_has_no_windows() -> None:
    assert list(perplexity.rolling_windows(0, 0, 8)) == []


def test_last_words_and_whether_they_are_the_likeliest(model: GPT) -> None:
    rows = ["it was a dog", "to b", "he said a nd", "so\n we go on an"]
    stream, windows = perplexity.last_word_stream(rows, LETTERS, 8)
    scores = perplexity.score(model, stream, windows, 2, ALONE)
    assert stream.words == len(rows) == len(scores.nll)
    for row, nll, greedy in zip(rows, scores.nll, scores.greedy, strict=True):
        text = LETTERS.encode(row).tolist()
        word = len(row) - len(row[: row.rindex(" ")].rstrip())  # with the white space before it
        each = [nats(model, text[max(0, len(text) - 9) : t], text[t]) for t in range(len(text) - word, len(text))]
        assert nll == pytest.approx(sum(n for n, _ in each), rel=1e-12)
        assert greedy == all(right for _, right in each)


def test_greedy_is_true_of_what_the_model_would_say(model: GPT) -> None:
    said = model.generate(torch.tensor([[4, 7]]), 5, temperature=0)[0].numpy()
    wrong = said.copy()
    wrong[4] = (wrong[4] + 1) % V
    stream = Stream.of(np.concatenate([said, wrong]), 0)
    scores = perplexity.score(model, stream, Windows.of([(0, 7, 5), (7, 7, 5), (7, 7, 2)]), 3, ALONE)
    rest = [nats(model, wrong[:t], wrong[t])[1] for t in (5, 6)]
    assert scores.greedy.tolist() == [True, False, all(rest)]
    unseen = perplexity.score(model, stream, Windows.of([(0, 7, 5)]), 3, ALONE, look=False)
    assert unseen.greedy.tolist() == [False] and unseen.nll[0] == pytest.approx(scores.nll[0], rel=1e-12)


def test_the_size_of_batches_and_of_the_head_changes_nothing(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, windows = Stream.of(ids(50), 0), perplexity.strided_windows(50, 8, 3)
    expected = perplexity.score(model, stream, windows, 1, ALONE).nll
    np.testing.assert_allclose(perplexity.score(model, stream, windows, 100, ALONE).nll, expected, rtol=1e-12)
    monkeypatch.setitem(perplexity.LOGITS, "cpu", 1)
    np.testing.assert_allclose(perplexity.score(model, stream, windows, 4, ALONE).nll, expected, rtol=1e-12)


def test_a_word_longer_than_the_window_is_refused() -> None:
    with pytest.raises(DataError, match=r"window=3 is too short for the last word 'abcd' \(5 tokens\)"):
        perplexity.last_word_stream(["x abcd"], LETTERS, 3)


def test_rows_are_tokenised_one_by_one_with_an_end_after_each() -> None:
    stream = perplexity.row_stream(["ab c\n", "", "d"], LETTERS)
    end = V - 1
    assert stream.read(0, stream.tokens).tolist() == [0, 1, 26, 2, 27, end, end, 3, end]
    assert (stream.tokens, stream.words) == (9, 3)


def test_rows_are_joined_by_blank_lines() -> None:
    stream = perplexity.joined_stream(["ab\n", "", "c d\n"], LETTERS)
    assert LETTERS.decode(stream.read(0, stream.tokens).tolist()) == "ab\n\n\n\n\nc d\n"
    assert stream.words == 3


def test_words_of_a_prepared_set_are_counted_across_pieces(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "one two\n three  four five " * 5
    parts = [LETTERS.encode(text), np.array([V - 1], dtype=np.uint16), LETTERS.encode(text)]
    np.concatenate(parts).astype("<u2").tofile(tmp_path / "val_00000.bin")
    tokens = Tokens([tmp_path / "val_00000.bin"], V, "t/val")
    monkeypatch.setattr(perplexity, "PIECE", 7)
    assert perplexity.token_stream(tokens, LETTERS).words == 50


def test_articles_begin_at_headings_of_the_first_level() -> None:
    rows = ["", " = One = \n", "", " First . \n", " = = Part = = \n", " More \n", "", " = Two = \n", " Last \n"]
    one, two = perplexity.wikitext_documents(rows)
    assert one == " = One = \n \n First . \n = = Part = = \n More \n "
    assert two == " = Two = \n Last \n"


def test_wikitext_is_detokenised_document_by_document() -> None:
    rows = ["", " = a b = \n", " c @-@ d , e \n"]
    tokenizer = Letters("abcdefghijklmnopqrstu=-,\n v")
    stream, windows = perplexity.wikitext_stream(rows, tokenizer, 4)
    read = stream.read(0, stream.tokens).tolist()
    assert read[0] == V - 1
    text = tokenizer.decode(read[1:])
    assert text == " = a b =\nc-d, e\n"
    assert windows.scored.sum() == len(text)
    assert stream.words == len(re.split(r"\s+", " = a b = \n c @-@ d , e \n"))  # an empty one at either end


needs_mirror = pytest.mark.skipif(not mirrored("wiki.test.raw"), reason="DATA_MIRROR has no wiki.test.raw")


@needs_mirror
def test_documents_of_wiki_test_raw() -> None:
    path = mirrored("wiki.test.raw")
    assert path
    raw = path.read_text(encoding="utf-8")
    documents = list(perplexity.wikitext_documents(texts("wikitext2", "test")))
    assert len(documents) == 62  # as many as the harness has
    assert " \n" + "\n".join(documents) == raw  # nothing is lost but the blank line before the first


def test_a_model_that_knows_nothing_has_the_perplexity_of_guessing() -> None:
    gpt = GPT(GPTConfig(block_size=8, vocab_size=V, n_layer=1, n_head=1, n_embd=4, vocab_multiple=8))
    with torch.no_grad():
        gpt.lm_head.weight.zero_()
    windows = perplexity.strided_windows(30, 8, 4)
    nll = total(gpt, Stream.of(ids(30), 0), windows)
    assert math.exp(nll / windows.scored.sum()) == pytest.approx(V, rel=1e-6)
