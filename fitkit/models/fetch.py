"""Download face models from their public repositories."""
from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from fitkit.errors import InputError, MissingWeightsError
from fitkit.models.ict import EXPRESSIONS, NUM_IDENTITY, import_ict
from fitkit.models.registry import models_folder, store_model

log = logging.getLogger(__name__)

ICT_URL = "https://raw.githubusercontent.com/ICT-VGL/ICT-FaceKit/master/FaceXModel"
ICT_FILES = ("generic_neutral_mesh.obj", *(f"identity{i:03d}.obj" for i in range(NUM_IDENTITY)),
             *(f"{n}.obj" for n in EXPRESSIONS))
ICT_MAX_BYTES = 16 * 2**20  # per file; they have 2.6 MB
# SHA-256 of the files we have seen ourselves; the others are checked by vertex count and order on import.
ICT_SHA256 = {
    "generic_neutral_mesh.obj": "eedbc2576d8e5ea57f55255b8f98263213a1efb5431d8bfceed1d7aef10271f9",
    "identity000.obj": "918160cf82d541336b4c367cf93199c9827832bde02511b8fbdf9019d6f1a773",
    "identity001.obj": "325115059deb6691cb2d55da07ae38bb08ce36e4ea146982f294a17513155b3b",
    "identity002.obj": "e140e8305cd5232def3b94331d08450a13f312e525130fca8eeaa653231decc3",
    "jawOpen.obj": "8d84355e10f48b05550980cee385bcd426f4797090da76a20de0535bb2f99f4a",
    "mouthSmile_L.obj": "91794e73cef330f1c7d1f4541723544708536b39d5dd6ed35fd8f83f676b7af4",
}
ATTEMPTS, PAUSE, TIMEOUT = 4, 0.5, 30.0  # per file; seconds before the next attempt; seconds without an answer


def fetch_ict(name: str = "ict", base_url: str = ICT_URL, overwrite: bool = False,
              progress: Callable[[int, int], None] | None = None) -> Path:
    """Download the OBJ files of ICT-FaceKit (about 400 MB), import them and store the model.

    An interrupted download goes on where it stopped; the OBJ files are deleted when the model is stored.

    Args:
        progress: called with (files done, files in all).
    Returns:
        the stored model file.
    Raises:
        MissingWeightsError: no network, file not found, wrong checksum, too large.
        InputError: the name is taken; files that are not the model; a folder that cannot be written.
    """
    target = models_folder() / f"{name}.npz"
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists already; use --overwrite, or another --name")
    folder = models_folder() / "downloads" / "ict"
    for i, file in enumerate(ICT_FILES):
        if progress:
            progress(i, len(ICT_FILES))
        download(f"{base_url.rstrip('/')}/{file}", folder / file, ICT_SHA256.get(file), ICT_MAX_BYTES)
    if progress:
        progress(len(ICT_FILES), len(ICT_FILES))
    path = store_model(import_ict(folder, name), overwrite)
    shutil.rmtree(folder, ignore_errors=True)
    return path


def download(url: str, path: Path, sha256: str | None = None, max_bytes: int = 2**30) -> Path:
    """Download one file to `path`, unless it is there.

    It grows under a temporary name (`.part`), which the next attempt or the next call continues, and is renamed when
    it is whole and its checksum is right.

    Args:
        sha256: hexadecimal, or None if not known; max_bytes: a larger file is refused.
    Raises:
        MissingWeightsError: it cannot be had; says why, and what to do.
        InputError: the folder cannot be written.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and (sha256 is None or _sha256(path) == sha256):
            return path
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                log.info("%s: %s; trying again", url, reason)
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                _receive(url, part, max_bytes)
            except _TooLarge as error:
                part.unlink(missing_ok=True)
                reason = str(error)
                break
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {error.reason}"
                if error.code == 416:  # the part is longer than the file: of another version
                    part.unlink(missing_ok=True)
                elif error.code < 500 and error.code != 429:
                    break
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            else:
                if sha256 is None or _sha256(part) == sha256:
                    os.replace(part, path)
                    return path
                reason = f"wrong SHA-256 {_sha256(part)[:16]}..., expected {sha256[:16]}..."
                part.unlink()
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror or error}); "
                         "set FITKIT_MODELS to a folder you may write to") from error
    raise MissingWeightsError(f"{url} cannot be downloaded: {reason}; check the network and call again (it continues "
                              "where it stopped), or download the files elsewhere and use 'fitkit model import'")


def _receive(url: str, part: Path, max_bytes: int) -> None:
    """Append to `part` what is missing of the file at `url`; ConnectionError if the connection ends too early."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "fitkit", "Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if start and not (answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")):
            start = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        if total is not None and total > max_bytes:
            raise _TooLarge(f"it has {total} bytes, at most {max_bytes} were expected")
        with open(part, "ab" if start else "wb") as file:
            done = start
            while block := answer.read(2**16):
                done += len(block)
                if done > max_bytes:
                    raise _TooLarge(f"it has more than the {max_bytes} bytes that were expected")
                file.write(block)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


class _TooLarge(Exception):
    """Not the file that was meant."""


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
