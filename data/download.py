"""Files from the internet, each pinned by its sha256; DATA_MIRROR=<folder> is looked in before any download."""

import os
import shutil
import urllib.request
from pathlib import Path

from data.manifest import DataError, file_sha256, publish

CACHE = Path(__file__).parent / ".cache"


def fetch(filename: str, url: str, sha256: str) -> Path:
    """The path of a pinned file: from DATA_MIRROR, from an earlier download, or downloaded now.

    Raises:
        DataError: the file has another checksum, or there is neither a copy of it nor a network.
    """
    mirror = os.environ.get("DATA_MIRROR")
    for path in ([Path(mirror, filename)] if mirror else []) + [CACHE / filename]:
        if path.is_file():
            _check(path, sha256, f"put the file from {url} there")
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{filename}.{os.getpid()}.partial")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, open(partial, "wb") as f:
            shutil.copyfileobj(response, f)
            f.flush()
            os.fsync(f.fileno())
        _check(partial, sha256, f"{url} has changed; put a copy of the pinned file into DATA_MIRROR")
        publish(partial, path)
    except OSError as e:  # urllib's errors are OSErrors; so is a full disk
        where = f"{filename} is not in DATA_MIRROR={mirror}" if mirror else "DATA_MIRROR is not set"
        raise DataError(
            f"could not download {url} ({e}), and {where}: save the file as {path},"
            f" or as {filename} in a folder and set DATA_MIRROR to it (sha256 {sha256[:16]}...)"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def _check(path: Path, sha256: str, remedy: str) -> None:
    if (found := file_sha256(path)) != sha256:
        raise DataError(f"{path} has sha256 {found[:16]}..., expected {sha256[:16]}...: {remedy}")
