"""Fetching the scenes of regions from a STAC API: `python -m data_prep.tiles.download REGIONS OUT --stac-url URL …`.

Items are searched page by page (POST URL/search, then the pages' own "next" links), for every region and collection, by
dates and cloud cover. Of each item only the assets that `tile_triplets` reads are fetched, to OUT/COLLECTION/ITEM/FILE.
A file is written under a name of its own (.part) and renamed when it is whole: its size is checked against the server's
and the item's (file:size), its content against the item's checksum (file:checksum, SHA-2 multihash). Called again, it
goes on where it stopped: whole files are kept, partial ones continued where the server can. OUT/items.json lists what is
there, for `--set items=items.json`. Items come from the first search only in so far as the archive grows: give an end
date, and `--items OUT/items.json` of a colleague to fetch the very same ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from data_prep.tiles.find import item_sensor, wanted_assets
from data_prep.tiles.regions import Region, read_regions
from frontier.errors import EXIT_OK, TransientError, UserError

COLLECTIONS = ("sentinel-1-grd", "sentinel-2-l2a", "naip")
_PIECE = 1 << 20
_HASHES = {"1220": ("sha256", 64), "1340": ("sha512", 128)}
"""Multihash prefixes (code and length of the digest, hexadecimal) -> algorithm, hexadecimal digits."""
_AGAIN = (408, 429, 500, 502, 503, 504)
"""HTTP answers after which trying again is reasonable."""


class Refused(UserError):
    """An HTTP answer that trying again will not change."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Network:
    """How to talk: seconds before a silent server is given up, tries, seconds before the second try (then doubled)."""

    timeout: float = 60.0
    tries: int = 4
    pause: float = 1.0


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 everything is there, 2 a mistake, 75 trying again may help."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.tiles.download", description="Fetch the scenes of regions from a STAC API."
    )
    parser.add_argument("regions", metavar="REGIONS", type=Path, help="GeoJSON polygons or a list of boxes")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to fetch to; call again to go on")
    parser.add_argument("--stac-url", required=True, metavar="URL", help="root of the STAC API (https://…/v1)")
    parser.add_argument("--collections", default=",".join(COLLECTIONS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--datetime", metavar="START/END", help="RFC 3339 dates, .. for an open end")
    parser.add_argument("--max-cloud", type=float, metavar="PERCENT", help="of collections that tell their cloud cover")
    parser.add_argument(
        "--max-items", type=int, default=1000, help="of a collection in a region (default: %(default)s)"
    )
    parser.add_argument("--items", type=Path, help="fetch the items of this list instead of searching")
    parser.add_argument("--assets", help="only these of the assets that are read, comma-separated: visual,vv,vh,image")
    parser.add_argument("--dry-run", action="store_true", help="search and print what would be fetched")
    parser.add_argument("--timeout", type=float, default=60, help="seconds without an answer (default: %(default)s)")
    parser.add_argument("--tries", type=int, default=4, help="of every request (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"frontier: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code


def _run(arguments: argparse.Namespace) -> int:
    if arguments.timeout <= 0 or arguments.tries < 1 or arguments.max_items < 1:
        raise UserError("--timeout, --tries, --max-items: give numbers above 0")
    network = Network(arguments.timeout, arguments.tries)
    _check_address(arguments.stac_url, "--stac-url")
    regions = read_regions(arguments.regions)
    if arguments.items is not None:
        items = _items_of(arguments.items)
    else:
        items = []
        for collection in (name.strip() for name in arguments.collections.split(",") if name.strip()):
            for region in regions:
                query = search_query(region, collection, arguments.datetime)
                found = search(arguments.stac_url, query, network, arguments.max_items)
                items += [item for item in found if _clear(item, arguments.max_cloud)]
    only = None if arguments.assets is None else {name.strip() for name in arguments.assets.split(",")}
    wanted, refused = plan(items, only)
    for name, reason in refused:
        print(f"frontier: {name}: left out: {reason}", file=sys.stderr)
    if not wanted:
        raise UserError(f"{arguments.regions}: no item with usable assets was found: widen --datetime or --max-cloud")
    if arguments.dry_run:
        for item in wanted:
            for asset in item["fetch"]:
                print(f"{asset['path']}\t{asset['href']}")
        return EXIT_OK
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = fetch_all(wanted, arguments.out, network, lambda line: print(line, flush=True))
    write_items(wanted, arguments.out)
    if failed:
        shown = "; ".join(f"{path}: {reason}" for path, reason in failed[:3])
        raise TransientError(f"{len(failed)} files are missing ({shown}): run the same command again")
    return EXIT_OK


def search_query(region: Region, collection: str, dates: str | None) -> dict[str, Any]:
    """The body of a STAC search. A region across the antimeridian is asked for as a box whose west exceeds its east."""
    west, south, east, north = region.box
    turned = [(edge + 180) % 360 - 180 if abs(edge) > 180 else edge for edge in (west, east)]
    query: dict[str, Any] = {"collections": [collection], "limit": 100, "bbox": [turned[0], south, turned[1], north]}
    if dates is not None:
        query["datetime"] = dates
    return query


def search(url: str, query: dict[str, Any], network: Network, most: int) -> list[dict[str, Any]]:
    """Items of a search, page after page, at most `most`, sorted by id. Raises `UserError` or `TransientError`."""
    address, method, body = url.rstrip("/") + "/search", "POST", query
    items: dict[str, dict[str, Any]] = {}
    seen = set()
    while len(items) < most:
        key = (address, method, json.dumps(body, sort_keys=True))
        if key in seen:
            break  # a server that goes round in circles
        seen.add(key)
        page = _json(address, method, body, network)
        features = page.get("features") if isinstance(page, dict) else None
        if not isinstance(features, list):
            raise UserError(f"{address}: does not answer with STAC items: give the root of a STAC API as --stac-url")
        for item in features:
            if isinstance(item, dict) and isinstance(item.get("assets"), dict) and isinstance(item.get("id"), str):
                items.setdefault(item["id"], item)
        following = next((link for link in page.get("links") or [] if link.get("rel") == "next"), None)
        if following is None or not features:
            break
        address = urljoin(address, str(following.get("href", "")))
        method = str(following.get("method", "GET")).upper()
        more = following.get("body") or {}
        body = {**body, **more} if following.get("merge") else more
    return sorted(items.values(), key=lambda item: item["id"])[:most]


def plan(
    items: Sequence[dict[str, Any]], only: set[str] | None = None
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Items once each, with "fetch": their assets as {key, href, path, size, checksum}; and what is left out, with why.

    `only`: keys of the assets that are asked for, None for all that are read.
    """
    wanted: dict[str, dict[str, Any]] = {}
    refused = []
    for item in items:
        collection, name = str(item.get("collection") or "items"), str(item["id"])
        folder = f"{_safe(collection)}/{_safe(name)}"
        if folder in wanted:
            continue
        try:
            keys = [key for key in wanted_assets(item, item_sensor(item)) if only is None or key in only]
            if not keys:
                raise UserError(f"has no asset that is asked for, only {', '.join(sorted(item['assets']))}")
            wanted[folder] = {**item, "fetch": [_asset(item["assets"][key], key, folder) for key in keys]}
        except UserError as error:
            refused.append((f"{collection}/{name}", str(error)))
    return [wanted[folder] for folder in sorted(wanted)], refused


def _asset(asset: Any, key: str, folder: str) -> dict[str, Any]:
    href = asset.get("href") if isinstance(asset, dict) else None
    if not isinstance(href, str):
        raise UserError(f"asset {key} has no href")
    address = urlsplit(href)
    if address.scheme not in ("http", "https"):
        raise UserError(
            f"asset {key}: {address.scheme or 'no'} addresses are not fetched here, only http(s): fetch {href} with the "
            "archive's own client and give the list to --set items"
        )
    suffix = Path(address.path).suffix.lower()
    if suffix not in (".tif", ".tiff", ".jp2"):
        raise UserError(f"asset {key}: {suffix or 'a file without suffix'} is not GeoTIFF or JPEG 2000")
    size, checksum = asset.get("file:size"), asset.get("file:checksum")
    return {
        "key": key,
        "href": href,
        "path": f"{folder}/{_safe(key)}{suffix}",
        "size": size if isinstance(size, int) and size > 0 else None,
        "checksum": checksum.lower() if isinstance(checksum, str) else None,
    }


def _safe(text: str) -> str:
    """A name for a file or folder out of what a server says: letters, digits, and - _ . inside."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip(".")[:150] or "_"


def fetch_all(
    wanted: Sequence[dict[str, Any]], out: Path, network: Network, say: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Fetch every asset that is not there yet; returns what could not be fetched as (path, reason)."""
    failed = []
    for item in wanted:
        for asset in item["fetch"]:
            path = out / asset["path"]
            try:
                state = fetch(asset["href"], path, network, asset["size"], asset["checksum"])
                say(f"{asset['path']}: {state}, {path.stat().st_size:,} bytes")
            except (UserError, OSError) as error:
                failed.append((asset["path"], str(error)))
                say(f"{asset['path']}: failed: {error}")
    return failed


def fetch(url: str, path: Path, network: Network, size: int | None = None, checksum: str | None = None) -> str:
    """Bring a file to `path`; returns "kept" or "fetched". Raises `UserError` where it is not what was promised."""
    if path.is_file():
        problem = _wrong(path, size, checksum)
        if problem is None:
            return "kept"
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for attempt in range(network.tries):
        try:
            _continue(url, part, network, size, checksum)
            break
        except (TransientError, HTTPException, OSError) as error:
            if attempt + 1 == network.tries:
                raise TransientError(f"{url}: {error}") from None
            time.sleep(network.pause * 2**attempt)
    problem = _wrong(part, size, checksum)
    part.with_name(part.name + ".etag").unlink(missing_ok=True)
    if problem is not None:
        part.unlink()
        raise TransientError(f"{url}: {problem}")
    os.replace(part, path)
    return "fetched"


def _continue(url: str, part: Path, network: Network, size: int | None, checksum: str | None) -> None:
    """Read the rest of `url` after what `part` holds, or all of it where the server cannot continue.

    Only what is known to be of the same file is continued: its ETag is kept beside it, or there is a checksum.
    """
    tag_path = part.with_name(part.name + ".etag")
    tag = tag_path.read_text() if tag_path.is_file() else ""
    done = part.stat().st_size if part.is_file() and (tag or checksum is not None) else 0
    if size is not None and done == size:
        return
    if size is not None and done > size:
        done = 0
    asked = {"Range": f"bytes={done}-"} | ({"If-Range": tag} if tag else {}) if done else {}
    try:
        answer = _request(url, "GET", None, network, asked)
    except Refused as error:
        if error.status == 416 and done:
            part.unlink()
            raise TransientError("the partial file does not fit the server's") from None
        raise
    with answer:
        length = answer.headers.get("Content-Length")
        fresh = answer.headers.get("ETag") or ""
        if not (
            done and answer.status == 206 and str(answer.headers.get("Content-Range")).startswith(f"bytes {done}-")
        ):
            done = 0
            if fresh and not fresh.startswith("W/"):
                tag_path.write_text(fresh)
            else:
                tag_path.unlink(missing_ok=True)
        read = 0
        with open(part, "ab" if done else "wb") as file:
            while piece := answer.read(_PIECE):
                file.write(piece)
                read += len(piece)
            file.flush()
            os.fsync(file.fileno())
    if length is not None and read != int(length):
        raise TransientError(f"the connection ended after {read} of {length} bytes")


def _wrong(path: Path, size: int | None, checksum: str | None) -> str | None:
    """What is wrong with a file, or None. A checksum of a kind that is not known is an error, not a pass."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes, {size} were promised"
    if checksum is None:
        return None
    kind = _HASHES.get(checksum[:4])
    if kind is None or len(checksum) != 4 + kind[1]:
        return f"checksum {checksum[:12]}… is of a kind that is not known (SHA-2 256 and 512 are)"
    digest = hashlib.new(kind[0])
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return None if digest.hexdigest() == checksum[4:] else "does not have the checksum that was promised"


def write_items(wanted: Sequence[dict[str, Any]], out: Path) -> None:
    """OUT/items.json: the items all of whose files are there, addresses local, the remote ones as `origin`."""
    features = []
    for item in wanted:
        if not all((out / asset["path"]).is_file() for asset in item["fetch"]):
            continue
        local = {k: v for k, v in item.items() if k != "fetch"}
        local["assets"] = {
            asset["key"]: {**item["assets"][asset["key"]], "href": asset["path"], "origin": asset["href"]}
            for asset in item["fetch"]
        }
        features.append(local)
    temporary = out / ".items.json.part"
    temporary.write_text(json.dumps({"type": "FeatureCollection", "features": features}, indent=1), encoding="utf-8")
    os.replace(temporary, out / "items.json")


def _items_of(path: Path) -> list[dict[str, Any]]:
    """Items of a list, with the addresses that they were fetched from."""
    try:
        features = json.loads(path.read_bytes())["features"]
        for item in features:
            for asset in item["assets"].values():
                asset["href"] = asset.pop("origin", asset["href"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--items {path}: is not a list of STAC items ({error}): give an items.json") from None
    return features


def _clear(item: dict[str, Any], most: float | None) -> bool:
    cloud = (item.get("properties") or {}).get("eo:cloud_cover")
    return most is None or not isinstance(cloud, int | float) or cloud <= most


def _check_address(url: str, what: str) -> None:
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise UserError(f"{what} {url}: is not an http(s) address")


def _json(url: str, method: str, body: dict[str, Any], network: Network) -> Any:
    for attempt in range(network.tries):
        try:
            with _request(url, method, body if method == "POST" else None, network, {}) as answer:
                return json.loads(answer.read())
        except ValueError:
            raise UserError(f"{url}: does not answer with JSON: give the root of a STAC API as --stac-url") from None
        except (TransientError, HTTPException, OSError) as error:
            if attempt + 1 == network.tries:
                raise TransientError(f"{url}: {error}: run the same command again") from None
            time.sleep(network.pause * 2**attempt)
    raise AssertionError("unreachable")


def _request(url: str, method: str, body: dict[str, Any] | None, network: Network, headers: dict[str, str]) -> Any:
    """An open answer. Raises `TransientError` where trying again is reasonable, else `UserError` with `status`."""
    from urllib.request import Request, urlopen

    _check_address(url, "address")
    data = None if body is None else json.dumps(body).encode()
    told = {"User-Agent": "frontier-geofm", "Accept-Encoding": "identity", **headers}
    if data is not None:
        told["Content-Type"] = "application/json"
    try:
        return urlopen(Request(url, data=data, headers=told, method=method), timeout=network.timeout)
    except HTTPError as error:
        error.close()
        if error.code in _AGAIN:
            raise TransientError(f"the server answers {error.code}") from None
        raise Refused(
            f"{url}: the server answers {error.code} ({error.reason}): check the address and access", error.code
        ) from None
    except URLError as error:
        raise TransientError(f"cannot be reached ({error.reason})") from None


if __name__ == "__main__":
    sys.exit(main())
