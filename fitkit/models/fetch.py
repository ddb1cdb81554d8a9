"""Download face models from their public repositories."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fitkit.errors import InputError, MissingWeightsError
from fitkit.io.atomic import writing
from fitkit.models.formats import FORMATS
from fitkit.models.formats.gnm import LANDMARK_FILE, LANDMARK_FOLDER, MODEL_FILE
from fitkit.models.formats.ict import EXPRESSIONS, NUM_IDENTITY, NUM_VERTICES, read_obj
from fitkit.models.registry import free_place, models_folder, store_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Download:
    """The files of a face model that may be downloaded.

    title: of the model; addresses: file -> where it is; sha256: of the files that we have seen ourselves, or
    whose checksum is published, hexadecimal; max_bytes: per file; usable: whether a file without a checksum
    may be one of the model.
    """

    title: str
    addresses: dict[str, str]
    sha256: dict[str, str]
    max_bytes: int
    usable: Callable[[Path], bool] = lambda path: True


def _is_ict(path: Path) -> bool:
    try:
        return len(read_obj(path, only_vertices=True)[0]) == NUM_VERTICES
    except InputError:
        return False


ICT_URL = "https://raw.githubusercontent.com/ICT-VGL/ICT-FaceKit/master/FaceXModel"
ICT_FILES = (
    "generic_neutral_mesh.obj",
    *(f"identity{i:03d}.obj" for i in range(NUM_IDENTITY)),
    *(f"{n}.obj" for n in EXPRESSIONS),
)
GNM_REVISION = "9c9419f191edd68644ef5cb6572e238248e9a81c"  # of the repository
GNM_MODEL_REVISION = "c01e90d298d82301f9fd18f54806be751775cb7c"  # of the model's page
DOWNLOADS = {
    "ict": Download(
        "ICT-FaceKit",
        {file: f"{ICT_URL}/{file}" for file in ICT_FILES},
        # The others are checked by vertex count and order on import.
        {
            "generic_neutral_mesh.obj": "eedbc2576d8e5ea57f55255b8f98263213a1efb5431d8bfceed1d7aef10271f9",
            "identity000.obj": "918160cf82d541336b4c367cf93199c9827832bde02511b8fbdf9019d6f1a773",
            "identity001.obj": "325115059deb6691cb2d55da07ae38bb08ce36e4ea146982f294a17513155b3b",
            "identity002.obj": "e140e8305cd5232def3b94331d08450a13f312e525130fca8eeaa653231decc3",
            "jawOpen.obj": "8d84355e10f48b05550980cee385bcd426f4797090da76a20de0535bb2f99f4a",
            "mouthSmile_L.obj": "91794e73cef330f1c7d1f4541723544708536b39d5dd6ed35fd8f83f676b7af4",
        },
        16 * 2**20,  # they have 2.6 MB
        _is_ict,
    ),
    "gnm": Download(
        "GNM Head",
        {
            MODEL_FILE: "https://huggingface.co/google/gnm-v3/resolve/"
            f"{GNM_MODEL_REVISION}/v3_0/{MODEL_FILE}",
            LANDMARK_FILE: "https://raw.githubusercontent.com/google/GNM/"
            f"{GNM_REVISION}/{LANDMARK_FOLDER}/{LANDMARK_FILE}",
        },
        {
            MODEL_FILE: "61d78bbfb4ad8e0b38495804a4caef3214d3df00f8c3f68761e63b41ce3747eb",
            LANDMARK_FILE: "8b4b759042cae8b67062794306dae9d60fc7ba11ddad60461ba3e2bfaaeac222",
        },
        128 * 2**20,  # they have 53 MB
    ),
}
# Per file; seconds before the next attempt; seconds without an answer.
ATTEMPTS, PAUSE, TIMEOUT = (4, 0.5, 30.0)
MAX_SECONDS = 600.0  # for a file, all attempts together


def fetch_model(
    kind: str,
    name: str = "",
    base_url: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Download the files of a face model, import them and store the model.

    An interrupted download goes on where it stopped; the files are deleted when the model is stored.

    Args:
        kind: of `DOWNLOADS`; name: of the stored model, without one the kind; base_url: another address that
            has all of the files; progress: called with (files done, files in all).
    Returns:
        the stored model file.
    Raises:
        MissingWeightsError: no network, file not found, wrong content or checksum, too large, too slow.
        InputError: the name is taken, or cannot be one; an address that is none; a folder that cannot be
            written.
    """
    wanted, name = DOWNLOADS[kind], name or kind
    free_place(name, overwrite)
    folder = models_folder() / "downloads" / kind
    for i, (file, address) in enumerate(wanted.addresses.items()):
        if progress:
            progress(i, len(wanted.addresses))
        url = address if base_url is None else f"{base_url.rstrip('/')}/{file}"
        download(url, folder / file, wanted.sha256.get(file), wanted.max_bytes)
    if progress:
        progress(len(wanted.addresses), len(wanted.addresses))
    try:
        model = FORMATS[kind].read(folder, name)
    except InputError as error:
        unknown = [file for file in wanted.addresses if file not in wanted.sha256]
        wrong = [file for file in unknown if not wanted.usable(folder / file)] or unknown
        if not wrong:
            raise
        for file in wrong:
            (folder / file).unlink(missing_ok=True)
        raise MissingWeightsError(
            f"{base_url or 'the usual address'}: the files from there are not those of {wanted.title} "
            f"({error}); {len(wrong)} of them, such as {wrong[0]}, were deleted and will be fetched again; "
            "try another --url"
        ) from error
    path = store_model(model, overwrite)
    shutil.rmtree(folder, ignore_errors=True)
    return path


def download(
    url: str, path: Path, sha256: str | None = None, max_bytes: int = 2**30, max_seconds: float = MAX_SECONDS
) -> Path:
    """Download one file over http or https to `path`, unless it is there.

    It grows under a temporary name (`.part`), which the next attempt or the next call continues, and is
    renamed when it is whole and its checksum is right; otherwise it is thrown away. Without a checksum that
    name depends on the address, since nothing would tell that the parts are of two versions.

    Args:
        sha256: hexadecimal, or None if not known; max_bytes: a larger file is refused; max_seconds: for all
            attempts together.
    Raises:
        MissingWeightsError: it cannot be had; says why, and what to do.
        InputError: the address is none, or the folder cannot be written.
    """
    path = Path(path)
    if not _is_web(url):
        raise InputError(
            f"{url}: expected an address that begins with https:// or http:// and names a server"
        )
    of = "" if sha256 is not None else f".{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    part = path.with_name(f"{path.name}{of}.part")
    end, reason = time.monotonic() + max_seconds, ""
    with writing(path.parent, "set FITKIT_MODELS to a folder you may write to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and (sha256 is None or _sha256(path) == sha256):
            return path
        for attempt in range(ATTEMPTS):
            if attempt:
                log.info("%s: %s; trying again", url, reason)
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                _in_time(lambda: _receive(url, part, max_bytes, end), end)
            except _Refused as error:
                part.unlink(missing_ok=True)
                reason = str(error)
                break
            except _TooSlow:
                reason = f"it took longer than {max_seconds:.0f} seconds"
                break
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} {error.reason}"
                if error.code == 416:  # the part is longer than the file: of another version
                    part.unlink(missing_ok=True)
                elif error.code < 500 and error.code != 429:
                    break
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                TimeoutError,
                ConnectionError,
                ssl.SSLError,
                ValueError,
            ) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
                if isinstance(error, ValueError):  # an address that is none, perhaps after a redirection
                    break
            else:
                if sha256 is None or _sha256(part) == sha256:
                    os.replace(part, path)
                    return path
                reason = f"wrong SHA-256 {_sha256(part)[:16]}..., expected {sha256[:16]}..."
                part.unlink()
    raise MissingWeightsError(
        f"{url} cannot be downloaded: {' '.join(reason.split())}; check the network and call again (it "
        "continues where it stopped), or download the files elsewhere and use 'fitkit model import'"
    )


def _is_web(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Redirections stay on the web."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not _is_web(newurl):
            raise _Refused(f"it is redirected to {newurl[:100]}, which is not on the web")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _in_time(work: Callable[[], None], end: float) -> None:
    """Do `work` in a thread that is given up at the time `end`: a server that drips bytes, or a name server,
    can hold it for hours."""
    result: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            result.append(None)
        except BaseException as error:  # noqa: BLE001 - raised below
            result.append(error)

    thread = threading.Thread(target=run, daemon=True, name="fitkit-download")
    thread.start()
    thread.join(max(0.0, end - time.monotonic()))
    if not result:
        raise _TooSlow
    if result[0] is not None:
        raise result[0]


def _receive(url: str, part: Path, max_bytes: int, end: float) -> None:
    """Append to `part` what is missing of the file at `url`; ConnectionError if the connection ends too
    early."""
    start = part.stat().st_size if part.exists() else 0
    headers = {
        "User-Agent": "fitkit",
        "Accept-Encoding": "identity",
        **({"Range": f"bytes={start}-"} if start else {}),
    }
    opener = urllib.request.build_opener(_WebOnly)
    with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        if start and not (
            answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        ):
            start = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        if length is not None and not (length.isascii() and length.isdecimal()):
            raise _Refused(f"the server states a length of '{length[:40]}'")
        total = start + int(length) if length is not None else None
        if total is not None and total > max_bytes:
            raise _Refused(f"it has {total} bytes, at most {max_bytes} were expected")
        with open(part, "ab" if start else "wb") as file:
            done = start
            while block := answer.read1(2**16):
                done += len(block)
                if done > max_bytes:
                    raise _Refused(f"it has more than the {max_bytes} bytes that were expected")
                if time.monotonic() > end:
                    raise _TooSlow
                file.write(block)
                file.flush()  # nothing may be written after `end`: the next call goes on from here
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


class _Refused(Exception):
    """Not the file that was meant."""


class _TooSlow(Exception):
    """The time for it is over."""
