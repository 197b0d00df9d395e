"""What lies where in an uncompressed tar file, so that members are read by offset."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import BinaryIO

from data_prep.records import need_regular
from frontier.errors import UserError

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_END_PIECE = 1 << 20
_UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd", "lz4": "unlz4"}


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file in a tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


def list_members(path: str, unended: bool = False) -> tuple[list[Member], int]:
    """Regular files in the order of the tar, and the number of links and other special members passed over.

    Raises `UserError` with the reason where the tar is compressed, damaged or cut off, wherever that shows. `unended`: one
    that stops after a member, without the mark of an archive's end, is taken for whole.
    """
    members: list[Member] = []
    special = 0
    try:
        need_regular(path)
        with open(path, "rb") as file:
            refuse_compressed(file.read(8))
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for info in archive:
                    if info.isreg() and not info.issparse():
                        members.append(Member(info.name, info.offset_data, info.size))
                    elif not info.isdir():
                        special += 1
                end = archive.offset
            _check_end(file, end, unended)
    except tarfile.TarError as error:
        raise UserError(f"not a whole tar file ({error}): fetch it again") from None
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return members, special


def _check_end(file: BinaryIO, end: int, unended: bool) -> None:
    """Raise `UserError` unless zeros alone, and some but for `unended`, follow the last member that tarfile found.

    It takes a damaged header for the end, one archive behind another for nothing, and a file that was cut off between
    two members for a whole one.
    """
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise UserError(f"damaged at byte {end:,}: fetch it again")
    if len(block) < tarfile.BLOCKSIZE and not unended:
        raise UserError(
            f"stops at byte {end:,} without the mark of an archive's end, as if cut off there: fetch it again"
        )
    place = end
    while block:
        if block.strip(b"\0"):
            raise UserError(
                f"goes on after its end, at byte {place:,} or later, as archives joined by cat do: give each as a file "
                "of its own (tar -Af joins them)"
            )
        place += len(block)
        block = file.read(_END_PIECE)


def refuse_compressed(start: bytes) -> None:
    """Raise `UserError` where the first bytes are those of a compressed file."""
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(f"is compressed with {kind}, so that no sample can be read alone: {_UNPACK[kind]} it first")


def read_member(path: str, offset: int, size: int) -> bytes:
    """The bytes of one member. Raises `UserError`."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read any more ({error.strerror}): restore it") from None
    if len(data) != size:
        raise UserError(f"{path}: is shorter than it was: restore it")
    return data
