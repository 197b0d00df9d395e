"""Fetching scenes from a small STAC API on this machine: pages, broken connections, wrong content, going on."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_prep.tiles import download
from data_prep.tiles.download import Network, fetch, main, plan, search, search_query
from data_prep.tiles.regions import read_regions
from frontier.errors import EXIT_OK, EXIT_TRANSIENT, EXIT_USER, TransientError, UserError
from tests.data_prep.tiles.test_tile_triplets import one_scene, opened
from tests.data_prep.tiles.world import PLACE

QUICK = Network(timeout=2, tries=3, pause=0.01)


class Archive(ThreadingHTTPServer):
    """Files, and items in pages of two. `cut[path]`: after how many bytes the connection ends, once each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.items: list[dict] = []
        self.cut: dict[str, list[int]] = {}
        self.busy: dict[str, int] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.ranges = True
        self.paging = "body"

    def add(self, name: str, data: bytes, **asset: object) -> dict:
        self.files[f"/data/{name}"] = data
        return {"href": f"{self.url}/data/{name}", **asset}


class Answers(BaseHTTPRequestHandler):
    server: Archive
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, data: bytes, most: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data if most is None else data[:most])
        if most is not None:
            self.close_connection = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/search":
            self._send(200, b"<html>")
            return
        self._page(body, int(body.get("token", 0)))

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.asked.append((path, self.headers["Range"]))
        if path == "/search":
            self._page({"collections": ["sentinel-2-l2a"]}, int(query.partition("=")[2]))
            return
        if self.server.busy.get(path, 0) > 0:
            self.server.busy[path] -= 1
            self._send(503, b"")
            return
        data = self.server.files.get(path)
        if data is None:
            self._send(404, b"")
            return
        tag = f'"{hashlib.sha1(data).hexdigest()}"'
        start = 0
        if self.server.ranges and self.headers["Range"] and self.headers["If-Range"] in (None, tag):
            start = int(self.headers["Range"][6:-1])
        cuts = self.server.cut.get(path, [])
        most = cuts.pop(0) if cuts else None
        if start:
            self._send(206, data[start:], most, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}", ETag=tag)
        else:
            self._send(200, data, most, ETag=tag)

    def _page(self, query: dict, start: int) -> None:
        found = [item for item in self.server.items if item["collection"] in query["collections"]]
        links = []
        if start + 2 < len(found):
            link = {"rel": "next", "href": f"{self.server.url}/search"}
            if self.server.paging == "body":
                link |= {"method": "POST", "body": {"token": start + 2}, "merge": True}
            else:
                link["href"] += f"?token={start + 2}"
            links = [link]
        page = {"type": "FeatureCollection", "features": found[start : start + 2], "links": links}
        self._send(200, json.dumps(page).encode())


@pytest.fixture
def archive() -> Iterator[Archive]:
    server = Archive()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    path = tmp_path / "regions.json"
    path.write_text(json.dumps([[PLACE[0] - 1, PLACE[1] - 1, PLACE[0] + 1, PLACE[1] + 1]]))
    return path


def item(name: str, assets: dict[str, dict], collection: str = "sentinel-2-l2a", **properties: object) -> dict:
    return {"type": "Feature", "id": name, "collection": collection, "properties": properties, "assets": assets}


def sha256(data: bytes) -> str:
    return "1220" + hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("paging", ["body", "link"])
def test_search_goes_through_the_pages(archive: Archive, regions: Path, paging: str) -> None:
    archive.paging = paging
    archive.items = [item(f"i{k}", {}) for k in (3, 1, 4, 0, 2)] + [item("other", {}, "naip")]
    query = search_query(read_regions(regions)[0], "sentinel-2-l2a", "2020-01-01T00:00:00Z/..")
    assert query["bbox"] == pytest.approx([PLACE[0] - 1, PLACE[1] - 1, PLACE[0] + 1, PLACE[1] + 1])
    assert query["datetime"] == "2020-01-01T00:00:00Z/.."
    found = search(archive.url, query, QUICK, 100)
    assert [one["id"] for one in found] == ["i0", "i1", "i2", "i3", "i4"]
    assert len(search(archive.url, query, QUICK, 3)) == 3


def test_a_region_across_the_antimeridian(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("[[179, -1, -179, 1]]")
    assert search_query(read_regions(path)[0], "naip", None)["bbox"] == [179, -1, -179, 1]


def test_from_the_search_to_samples(
    archive: Archive, regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = one_scene(tmp_path / "made", "s2", [60, 70, 80], bands=3, n=180).read_bytes()
    radar = [one_scene(tmp_path / "made", "s1", value, bands=1, n=180).read_bytes() for value in (-10, -16)]
    promised = {"file:size": len(scene), "file:checksum": sha256(scene)}
    archive.items = [
        item("clear", {"visual": archive.add("a/TCI.tif", scene, **promised)}, **{"eo:cloud_cover": 3.0}),
        item("cloudy", {"visual": archive.add("b/TCI.tif", scene)}, **{"eo:cloud_cover": 90.0}),
        item("bucket", {"visual": {"href": "s3://bucket/TCI.tif"}}, **{"eo:cloud_cover": 1.0}),
        item(
            "../radar",
            {"vv": archive.add("vv.tif", radar[0]), "vh": archive.add("vh.tif", radar[1]), "thumbnail": {"href": "x"}},
            "sentinel-1-grd",
        ),
    ]
    out = tmp_path / "out"
    command = [str(regions), str(out), "--stac-url", archive.url, "--max-cloud", "10", "--timeout", "5"]
    command += ["--collections", "sentinel-1-grd,sentinel-2-l2a"]
    assert main([*command, "--dry-run"]) == EXIT_OK
    assert capsys.readouterr().out.count(archive.url) == 3
    assert not out.exists()
    assert main(command) == EXIT_OK
    said = capsys.readouterr()
    assert said.out.count("fetched") == 3
    assert "bucket: left out: asset visual: s3 addresses are not fetched here" in said.err
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        "items.json",
        "sentinel-2-l2a/clear/visual.tif",
        "sentinel-1-grd/_radar/vv.tif",
        "sentinel-1-grd/_radar/vh.tif",
    }
    source = opened(out, "items=items.json", "sensors=s1,s2", "size=16")
    sample = source.load([0])
    assert sample["s2"][0, :, 0, 0].tolist() == [60, 70, 80]
    assert sample["s1"][0, :, 0, 0].tolist() == [-1000, -1600]
    # Again: nothing is fetched; with the list as it was, nothing is searched.
    archive.asked.clear()
    assert main(command) == EXIT_OK
    assert archive.asked == []
    assert capsys.readouterr().out.count("kept") == 3
    archive.items = []
    second = [str(regions), str(tmp_path / "second"), "--stac-url", archive.url, "--items", str(out / "items.json")]
    assert main(second) == EXIT_OK
    assert (tmp_path / "second/sentinel-2-l2a/clear/visual.tif").read_bytes() == scene


def test_a_broken_connection_is_continued(archive: Archive, tmp_path: Path) -> None:
    data = bytes(range(256)) * 400
    url = archive.add("a.tif", data)["href"]
    archive.cut["/data/a.tif"] = [1000, 5000]
    assert fetch(url, tmp_path / "a.tif", QUICK) == "fetched"
    assert (tmp_path / "a.tif").read_bytes() == data
    assert [asked for _, asked in archive.asked] == [None, "bytes=1000-", "bytes=6000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_later_call_continues_unless_the_file_has_changed(archive: Archive, tmp_path: Path) -> None:
    once = Network(timeout=2, tries=1)
    first, second = b"a" * 5000, b"b" * 5000
    for ranges, replaced in ((True, False), (True, True), (False, False)):
        archive.ranges = ranges
        url = archive.add("a.tif", first)["href"]
        archive.cut["/data/a.tif"] = [2000]
        path = tmp_path / f"{ranges}{replaced}.tif"
        with pytest.raises(TransientError, match="ended after 2000 of 5000"):
            fetch(url, path, once)
        assert not path.exists()
        if replaced:
            archive.add("a.tif", second)
        archive.asked.clear()
        assert fetch(url, path, once) == "fetched"
        assert archive.asked[0][1] == "bytes=2000-"
        assert path.read_bytes() == (second if replaced else first)


def test_wrong_content_is_never_kept(archive: Archive, tmp_path: Path) -> None:
    data = b"some pixels"
    url, path = archive.add("a.tif", data)["href"], tmp_path / "a.tif"
    for size, checksum, reason in (
        (12, None, "has 11 bytes, 12 were promised"),
        (11, sha256(b"other"), "does not have the checksum"),
        (None, "d50110" + "0" * 32, "of a kind that is not known"),
    ):
        with pytest.raises(TransientError, match=reason):
            fetch(url, path, QUICK, size, checksum)
        assert list(tmp_path.iterdir()) == []
    long = "1340" + hashlib.sha512(data).hexdigest()
    assert fetch(url, path, QUICK, 11, long) == "fetched"
    path.write_bytes(b"SOME pixels")
    assert fetch(url, path, QUICK, 11, long) == "fetched", "what was damaged since is fetched again"
    assert fetch(url, path, QUICK, 11, long) == "kept"


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(archive: Archive, tmp_path: Path) -> None:
    url = archive.add("a.tif", b"x")["href"]
    archive.busy["/data/a.tif"] = 2
    assert fetch(url, tmp_path / "a.tif", QUICK) == "fetched"
    archive.busy["/data/a.tif"] = 3
    with pytest.raises(TransientError, match="503"):
        fetch(url, tmp_path / "b.tif", QUICK)
    archive.asked.clear()
    with pytest.raises(UserError, match="answers 404"):
        fetch(url + "f", tmp_path / "c.tif", QUICK)
    assert len(archive.asked) == 1


def test_what_fails_is_named_and_the_rest_is_there(
    archive: Archive, regions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.items = [
        item("good", {"image": archive.add("g.tif", b"x")}, "naip"),
        item("lost", {"image": {"href": f"{archive.url}/data/none.tif"}}, "naip"),
    ]
    command = [str(regions), str(tmp_path / "out"), "--stac-url", archive.url, "--collections", "naip"]
    assert main(command) == EXIT_TRANSIENT
    said = capsys.readouterr().err
    assert "1 files are missing (naip/lost/image.tif" in said and said.count("\n") == 1
    listed = json.loads((tmp_path / "out/items.json").read_text())["features"]
    assert [one["id"] for one in listed] == ["good"]


def test_names_from_a_server_stay_inside(archive: Archive) -> None:
    evil = {"visual": {"href": f"{archive.url}/x.tif"}, "../../B04": {"href": f"{archive.url}/x.tif"}}
    wanted, _ = plan([item("../../etc/passwd", evil, "/root"), item("..", evil), item("a/b", evil)])
    paths = [asset["path"] for one in wanted for asset in one["fetch"]]
    assert len(paths) == 3
    for path in paths:
        assert not Path(path).is_absolute() and ".." not in Path(path).parts and len(Path(path).parts) == 3
    for href in ("file:///etc/passwd", "ftp://host/a.tif", "a.tif", "https://host/a.vrt", "https://host/a"):
        _, refused = plan([item("a", {"visual": {"href": href}})])
        assert len(refused) == 1, href
    with pytest.raises(UserError, match="is not an http"):
        download._request("file:///etc/passwd", "GET", None, QUICK, {})


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--stac-url", "ftp://x"], EXIT_USER, "is not an http"),
        (["--stac-url", "http://127.0.0.1:9", "--tries", "1"], EXIT_TRANSIENT, "cannot be reached"),
        (["--stac-url", "URL/data/page.tif"], EXIT_USER, "does not answer with JSON"),
        (["--stac-url", "URL"], EXIT_USER, "no item with usable assets"),
        (["--stac-url", "URL", "--tries", "0"], EXIT_USER, "give numbers above 0"),
        (["--stac-url", "URL", "--items", "none.json"], EXIT_USER, "is not a list of STAC items"),
    ],
)
def test_mistakes_are_one_line(
    archive: Archive,
    regions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    words: str,
) -> None:
    more = [text.replace("URL", archive.url) for text in more]
    assert main([str(regions), str(tmp_path / "out"), *more]) == code
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1, said
