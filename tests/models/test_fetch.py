import hashlib
import http.server
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny_model

from fitkit.errors import InputError, MissingWeightsError
from fitkit.models import fetch, registry
from fitkit.models.fetch import DOWNLOADS, download, fetch_model
from fitkit.models.formats import FORMATS, ict

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000).astype(np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
IMPORT_ICT = ict.import_ict


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under any name but those of `others`.

    ranges: honour Range; cut_after: bytes of the body after which the connection ends, for the first `cuts`
    answers; status: of the first answers, then 200; length: state Content-Length.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.cut_after, self.cuts, self.status, self.length = (
            CONTENT,
            True,
            None,
            0,
            [],
            True,
        )
        self.redirect, self.pause = None, 0.0  # address that every answer leads to; seconds after each kB
        self.requests = []  # (path, Range header)
        self.others: dict[str, bytes] = {}  # content by name

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        content = server.others.get(self.path.rsplit("/", 1)[-1], server.content)
        server.requests.append((self.path, wanted))
        if server.status:
            return self.send_error(server.status.pop(0))
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            return self.end_headers()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(content) and start:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.length:
            self.send_header(
                "Content-Length", str(len(content) - start) if server.length is True else server.length
            )
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            content = content[: start + server.cut_after]
        try:
            for at in range(start, len(content), 1000 if server.pause else len(content)):
                self.wfile.write(content[at : at + 1000] if server.pause else content[at:])
                time.sleep(server.pause)
        except ConnectionError:
            pass  # the client refused the rest

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_download(server, tmp_path):
    path = download(server.url + "/a.obj", tmp_path / "deep/a.obj", SHA256)
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["a.obj"]
    assert server.requests == [("/a.obj", None)]
    download(server.url + "/a.obj", path, SHA256), download(server.url + "/a.obj", path)
    assert len(server.requests) == 1, "a file that is there is not fetched again"
    path.write_bytes(b"damaged")
    assert download(server.url + "/a.obj", path, SHA256).read_bytes() == CONTENT


def test_cut_connection_is_resumed(server, tmp_path):
    server.cuts, server.cut_after = 2, 100_000
    assert download(server.url + "/a.obj", tmp_path / "a.obj", SHA256).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_next_call_resumes(server, tmp_path):
    server.cuts, server.cut_after = 4, 50_000
    with pytest.raises(
        MissingWeightsError,
        match=r"a\.obj cannot be downloaded: the connection ended after 200000 of 300000 bytes; check the "
        r"network and call again",
    ):
        download(server.url + "/a.obj", tmp_path / "a.obj", SHA256)
    assert [p.name for p in tmp_path.iterdir()] == ["a.obj.part"]
    assert download(server.url + "/a.obj", tmp_path / "a.obj", SHA256).read_bytes() == CONTENT
    assert server.requests[-1] == ("/a.obj", "bytes=200000-")


def test_server_without_ranges(server, tmp_path):
    server.ranges, server.cuts, server.cut_after = False, 1, 100_000
    assert download(server.url + "/a.obj", tmp_path / "a.obj", SHA256).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=100000-"]


def test_old_part_that_is_longer_than_the_file(server, tmp_path):
    (tmp_path / "a.obj.part").write_bytes(b"x" * 400_000)
    assert download(server.url + "/a.obj", tmp_path / "a.obj", SHA256).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == ["bytes=400000-", None]


def test_wrong_checksum(server, tmp_path):
    with pytest.raises(
        MissingWeightsError, match=f"wrong SHA-256 {SHA256[:16]}..., expected 0000000000000000..."
    ):
        download(server.url + "/a.obj", tmp_path / "a.obj", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_wrong_part_is_started_again(server, tmp_path):
    (tmp_path / "a.obj.part").write_bytes(b"x" * 1000)
    assert download(server.url + "/a.obj", tmp_path / "a.obj", SHA256).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == ["bytes=1000-", None]


@pytest.mark.parametrize(
    "status, requests, message",
    [([404] * 4, 1, "the server answers 404"), ([403] * 4, 1, "403"), ([503] * 4, 4, "503")],
)
def test_server_errors(server, tmp_path, status, requests, message):
    server.status = status
    with pytest.raises(MissingWeightsError, match=f"cannot be downloaded: .*{message}.*fitkit model import"):
        download(server.url + "/a.obj", tmp_path / "a.obj")
    assert len(server.requests) == requests and not list(tmp_path.iterdir())


def test_busy_server_is_asked_again(server, tmp_path):
    server.status = [503, 429]
    assert download(server.url + "/a.obj", tmp_path / "a.obj", SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [True, False])
def test_too_large(server, tmp_path, length):
    server.length = length
    with pytest.raises(MissingWeightsError, match="cannot be downloaded: it has .* bytes"):
        download(server.url + "/a.obj", tmp_path / "a.obj", max_bytes=200_000)
    assert len(server.requests) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", ["abc", "1600.5", "-1", "1_000", "\u00b2"])
def test_a_length_that_is_no_number(server, tmp_path, length):
    server.length = length
    with pytest.raises(
        MissingWeightsError, match=f"a.obj cannot be downloaded: the server states a length of '{length}'"
    ):
        download(server.url + "/a.obj", tmp_path / "a.obj")
    assert len(server.requests) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "data:text/plain,x", "ftp://127.0.0.1/a", "http://[::bad/"]
)
def test_a_redirection_off_the_web(server, tmp_path, target):
    server.redirect = target
    with pytest.raises(
        MissingWeightsError, match="cannot be downloaded: .*(which is not on the web|is not allowed|IPv6)"
    ):
        download(server.url + "/a.obj", tmp_path / "a.obj")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    [
        "foo",
        "http://[::",
        "file:///etc/passwd",
        "data:text/plain,x",
        "ftp://host/a",
        "http://",
        "http://a b/c",
        "",
    ],
)
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(
        InputError, match="expected an address that begins with https:// or http:// and names a server"
    ):
        download(url, tmp_path / "a.obj")
    assert not list(tmp_path.iterdir())


def test_a_server_name_that_is_too_long(server, tmp_path):
    with pytest.raises(MissingWeightsError, match="cannot be downloaded: "):
        download(f"http://{'a' * 300}/a.obj", tmp_path / "a.obj")


def test_the_whole_time_is_limited(server, tmp_path):
    server.pause = 0.1  # 30 s for the whole file, each answer in time
    began = time.monotonic()
    with pytest.raises(
        MissingWeightsError, match="a.obj cannot be downloaded: it took longer than 0 seconds"
    ):
        download(server.url + "/a.obj", tmp_path / "a.obj", SHA256, max_seconds=0.4)
    assert time.monotonic() - began < 3
    server.pause = 0.0
    assert download(server.url + "/a.obj", tmp_path / "a.obj", SHA256).read_bytes() == CONTENT
    assert server.requests[-1][1] is not None  # from where it stopped


def test_what_another_mirror_began_is_not_gone_on_with(server, tmp_path):
    """Without a checksum nothing would tell."""
    server.cuts, server.cut_after = 4, 50_000
    with pytest.raises(MissingWeightsError):
        download(server.url + "/old/a.obj", tmp_path / "a.obj")
    (tmp_path / "a.obj.part").write_bytes(b"x" * 1000)
    assert download(server.url + "/new/a.obj", tmp_path / "a.obj").read_bytes() == CONTENT
    assert server.requests[-1] == ("/new/a.obj", None)


def test_no_network(server, tmp_path):
    server.shutdown(), server.server_close()
    with pytest.raises(MissingWeightsError, match="a.obj cannot be downloaded: .*refused"):
        download(server.url + "/a.obj", tmp_path / "a.obj")
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written .*set FITKIT_MODELS"):
        download(server.url + "/a.obj", tmp_path / "file/a.obj")


@pytest.fixture
def small_ict(server, tmp_path, monkeypatch):
    """`fetch_model` of two small files, imported as the tiny model."""
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    files = ("generic_neutral_mesh.obj", "identity000.obj")
    small = replace(
        DOWNLOADS["ict"],
        addresses={file: f"{server.url}/published/{file}" for file in files},
        sha256={"identity000.obj": SHA256},
    )
    monkeypatch.setitem(DOWNLOADS, "ict", small)

    def imported(folder, name):
        assert sorted(p.name for p in folder.iterdir()) == sorted(files)
        return replace(tiny_model(), name=name)

    monkeypatch.setattr(ict, "import_ict", imported)
    return tmp_path / "models"


def test_fetch_ict(server, small_ict):
    steps = []
    path = fetch_model("ict", base_url=server.url + "/FaceXModel/", progress=lambda *step: steps.append(step))
    assert (
        path == small_ict / "ict.npz"
        and registry.load_model("ict").name == "ict"
        and steps == [(0, 2), (1, 2), (2, 2)]
    )
    assert [p for p, _ in server.requests] == [
        "/FaceXModel/generic_neutral_mesh.obj",
        "/FaceXModel/identity000.obj",
    ]
    assert not list((small_ict / "downloads").iterdir())
    with pytest.raises(InputError, match="ict.npz: exists already; use --overwrite"):
        fetch_model("ict", base_url=server.url)
    assert len(server.requests) == 2
    assert fetch_model("ict", base_url=server.url, overwrite=True) == path


def test_fetch_ict_goes_on_where_it_stopped(server, small_ict):
    server.cuts, server.cut_after = 4, 10_000
    with pytest.raises(MissingWeightsError, match="generic_neutral_mesh.obj cannot be downloaded"):
        fetch_model("ict", base_url=server.url)
    assert not (small_ict / "ict.npz").exists()
    fetch_model("ict", base_url=server.url)
    assert (
        server.requests[4] == ("/generic_neutral_mesh.obj", "bytes=40000-")
        and (small_ict / "ict.npz").exists()
    )


def test_names_are_checked_before_the_first_byte(server, small_ict):
    for name, message in (("../../evil", "model name: expected letters"), ("generic", "comes with fitkit")):
        with pytest.raises(InputError, match=message):
            fetch_model("ict", name, base_url=server.url)
    assert server.requests == []


def test_wrong_content_without_a_checksum_is_thrown_away(server, small_ict, monkeypatch):
    monkeypatch.setattr(ict, "import_ict", IMPORT_ICT)  # CONTENT is no OBJ file
    with pytest.raises(
        MissingWeightsError,
        match="are not those of ICT-FaceKit .*; 1 of them, such as generic_neutral_mesh.obj, were deleted",
    ):
        fetch_model("ict", base_url=server.url)
    assert [p.name for p in (small_ict / "downloads" / "ict").iterdir()] == ["identity000.obj"]
    with pytest.raises(MissingWeightsError):
        fetch_model("ict", base_url=server.url)
    assert len(server.requests) == 3  # it is asked for again


def test_published_files():
    ict, gnm = DOWNLOADS["ict"], DOWNLOADS["gnm"]
    assert set(DOWNLOADS) == set(registry.FETCHABLE) <= set(FORMATS)
    assert len(ict.addresses) == 154 and set(ict.sha256) <= set(ict.addresses)
    assert all(
        url == f"https://raw.githubusercontent.com/ICT-VGL/ICT-FaceKit/master/FaceXModel/{file}"
        for file, url in ict.addresses.items()
    )
    assert set(gnm.addresses) == set(gnm.sha256) == {"gnm_head.npz", "head_sparse_68.txt"}
    assert all(len(sha) == 64 for d in (ict, gnm) for sha in d.sha256.values())


def test_fetch_gnm(server, tmp_path, monkeypatch):
    """Both files from their own addresses, with their checksums; the model is GNM's."""
    import model_files_gnm

    model_files_gnm.write_gnm(tmp_path / "published")
    contents = {p.name: p.read_bytes() for p in (tmp_path / "published").iterdir()}
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    small = replace(
        DOWNLOADS["gnm"],
        addresses={file: f"{server.url}/{file}" for file in contents},
        sha256={file: hashlib.sha256(data).hexdigest() for file, data in contents.items()},
    )
    monkeypatch.setitem(DOWNLOADS, "gnm", small)
    server.others = contents
    path = fetch_model("gnm")
    assert path == tmp_path / "models/gnm.npz" and registry.load_model("gnm").joint_names[0] == "head"
    assert [p for p, _ in server.requests] == [f"/{file}" for file in contents]
    assert fetch_model("gnm", "mine", f"{server.url}/mirror/").name == "mine.npz"
    assert [p for p, _ in server.requests[2:]] == [f"/mirror/{file}" for file in contents]
    assert not list((tmp_path / "models/downloads").iterdir())
    contents["gnm_head.npz"] += b"x"
    with pytest.raises(MissingWeightsError, match="gnm_head.npz cannot be downloaded: wrong SHA-256"):
        fetch_model("gnm", "other")


def test_checksums_are_those_of_the_original_files():
    import gzip
    from pathlib import Path

    folder = Path(__file__).resolve().parents[3] / "shared/data/ict/obj"
    if not folder.is_dir():
        pytest.skip("the shared test data are not here")
    for name, sha256 in DOWNLOADS["ict"].sha256.items():
        assert hashlib.sha256(gzip.decompress((folder / f"{name}.gz").read_bytes())).hexdigest() == sha256
