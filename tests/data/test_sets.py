"""The data sets themselves, and where their files come from."""

import io
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data.download
from data import DataError, open_dataset
from data.preparation import unigram_entropy
from data.pystdlib import prepare as pystdlib
from data.shakespeare_char import prepare as shakespeare_char

ROOT = Path(__file__).resolve().parents[2]


def test_pystdlib(tmp_path: Path) -> None:
    pystdlib.prepare(tmp_path / "a")
    pystdlib.prepare(tmp_path / "b")
    ds = open_dataset(str(tmp_path / "a"), verify=True)
    assert ds.manifest == open_dataset(str(tmp_path / "b")).manifest
    assert ds.manifest["source"]["python"] == platform.python_version()
    assert 2_000_000 < len(ds.train) < 10_000_000
    assert 0.05 < len(ds.val) / len(ds.train) < 0.2
    assert 2.5 < ds.manifest["val_unigram_entropy"] < math.log(ds.vocab_size)
    text = ds.decode(ds.train.windows(np.array([0]), 2000)[0].tolist())
    first = next(path for path in pystdlib.modules() if not pystdlib.is_val(path.stem))
    assert text == pystdlib.clean(first.read_text(encoding="utf-8"))[:2000]


def test_pystdlib_keeps_text_readable() -> None:
    assert pystdlib.clean("\tx = 'Löwis'\f\n") == "    x = 'L?wis'\n"


def test_shakespeare_char(mirrored: Callable[[str], Path], tmp_path: Path) -> None:
    text = mirrored("tinyshakespeare.txt").read_text()
    shakespeare_char.prepare(tmp_path)
    ds = open_dataset(str(tmp_path), verify=True)
    assert (len(ds.train), len(ds.val), ds.vocab_size) == (1_003_854, 111_540, 65)
    both = [ds.decode(split.windows(np.array([0]), len(split))[0].tolist()) for split in (ds.train, ds.val)]
    assert "".join(both) == text


def test_unigram_entropy() -> None:
    counts = np.array([10**7, 10**7, 0, 2 * 10**7])  # 1.5 bits
    assert unigram_entropy(counts, counts) == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert unigram_entropy(counts, np.array([0, 0, 1, 0])) == pytest.approx(math.log(4e7), rel=1e-6)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, an empty cache, and an empty DATA_MIRROR, whose path it is."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(data.download, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_no_network_and_no_mirror(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=rf"Network is unreachable.*DATA_MIRROR={offline}.*save the file as .*hello.txt"
    ):
        data.download.fetch("hello.txt", "https://example.org/h", HELLO)
    monkeypatch.delenv("DATA_MIRROR")
    with pytest.raises(DataError, match="DATA_MIRROR is not set"):
        data.download.fetch("hello.txt", "https://example.org/h", HELLO)
    assert not list(data.download.CACHE.iterdir())


def test_mirror_before_cache_before_network(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = offline.parent / "served"
    served.write_text("hello")
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(Path(url).read_bytes()))
    cached = data.download.fetch("hello.txt", str(served), HELLO)
    assert cached.parent == data.download.CACHE and cached.read_text() == "hello"
    served.unlink()
    assert data.download.fetch("hello.txt", str(served), HELLO) == cached
    (offline / "hello.txt").write_text("hello")
    assert data.download.fetch("hello.txt", str(served), HELLO) == offline / "hello.txt"


def test_wrong_checksum(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (offline / "hello.txt").write_text("hellO")
    with pytest.raises(DataError, match=r"mirror/hello.txt has sha256 .*, expected 2cf24dba5fb0a30e"):
        data.download.fetch("hello.txt", "https://example.org/h", HELLO)
    served = offline.parent / "served"
    served.write_text("changed")
    (offline / "hello.txt").unlink()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(Path(url).read_bytes()))
    with pytest.raises(DataError, match="served has changed"):
        data.download.fetch("hello.txt", str(served), HELLO)
    assert not list(data.download.CACHE.iterdir())


def test_the_command(tmp_path: Path) -> None:
    """From another folder, as a script; one clear line and status 2 where it cannot."""
    command = [sys.executable, str(ROOT / "data/pystdlib/prepare.py"), f"--out={tmp_path / 'new' / 'folder'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unigram entropy" in done.stderr
    assert json.loads((tmp_path / "new" / "folder" / "manifest.json").read_text())["name"] == "pystdlib"
    (tmp_path / "file").touch()
    done = subprocess.run([*command[:2], f"--out={tmp_path / 'file'}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and str(tmp_path / "file") in done.stderr
