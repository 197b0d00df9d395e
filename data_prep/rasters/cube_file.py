"""NetCDF files as arrays with named dimensions: NetCDF-4 (HDF5, by h5py) and NetCDF-3 (by scipy), told by their bytes.

Only the root group is read. Nothing outside the file is: links to other files and datasets stored in them are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.records import need_regular
from frontier.data.chunks import overfull
from frontier.errors import UserError

_HDF5 = b"\x89HDF\r\n\x1a\n"
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Variable:
    """A variable: names of its dimensions, its shape, stored type, and attributes (text, or numpy arrays)."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attributes: Attributes

    def text(self, name: str) -> str:
        """A text attribute, "" where there is none."""
        value = self.attributes.get(name, "")
        return value if isinstance(value, str) else ""

    def numbers(self, name: str) -> list[float]:
        """A numeric attribute as a list, empty where there is none."""
        value = self.attributes.get(name)
        if value is None or isinstance(value, str):
            return []
        return [float(one) for one in np.atleast_1d(value).ravel() if np.isreal(one)]


class CubeFile:
    """An open NetCDF file: `variables` by name, `attributes` of the file, `read`, `close`; a context manager."""

    def __init__(self, path: str | Path) -> None:
        """Raises `UserError` beginning with the path where it is no NetCDF, or is cut short."""
        self.path = str(path)
        try:
            need_regular(path)
            with open(path, "rb") as file:
                head = file.read(8)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        self._handle: Any = None
        try:
            if head == _HDF5:
                with contextlib.suppress(ImportError):
                    import hdf5plugin  # noqa: F401  # filters such as zstd, where the extra "hdf5" is there
                self._handle = h5py.File(path, "r", locking=False)
                self.variables, self.attributes = _of_hdf5(self._handle)
            elif head[:4] in (b"CDF\x01", b"CDF\x02"):
                from scipy.io import netcdf_file

                self._handle = netcdf_file(str(path), "r", mmap=True, maskandscale=False)
                self.variables, self.attributes = _of_classic(self._handle)
            elif head[:4] == b"CDF\x05":
                raise UserError(f"{path}: NetCDF of format CDF-5: convert it (nccopy -k nc4)")
            elif not head:
                raise UserError(f"{path}: empty file")
            else:
                raise UserError(f"{path}: no NetCDF: neither HDF5 nor CDF by its first bytes")
        except UserError:
            self.close()
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            self.close()
            raise UserError(f"{path}: damaged or cut short ({_one_line(error)}): fetch it again") from None

    def read(self, name: str, where: tuple[slice | int, ...] = ()) -> np.ndarray:
        """Values of a variable, as stored but unsigned where `_Unsigned` says so. Raises `UserError`."""
        variable = self.variables[name]
        try:
            if isinstance(self._handle, h5py.File):
                found = np.asarray(self._handle[name][where or ()])
            else:
                # A copy: what is mapped goes away with the file.
                found = np.array(self._handle.variables[name].data[where or ()])
        except MemoryError:
            raise UserError(
                f"{self.path}: {name} of shape {variable.shape} needs more memory than there is: cut it into smaller files"
            ) from None
        except (OSError, RuntimeError, ValueError, IndexError, KeyError) as error:
            raise UserError(f"{self.path}: {name} does not decode ({_one_line(error)}): fetch it again") from None
        stored = found.dtype.newbyteorder("=")
        found = found.astype(stored, copy=False)
        return found if stored == variable.dtype else found.view(variable.dtype)

    def close(self) -> None:
        """Close it; nothing read from it is lost."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __enter__(self) -> CubeFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _native(dtype: np.dtype, attributes: Attributes) -> np.dtype:
    """The type of values as `CubeFile.read` gives them: native order, unsigned where `_Unsigned` is true."""
    native = dtype.newbyteorder("=")
    said = str(attributes.get("_Unsigned", "")).lower()
    if native.kind == "i" and said == "true":
        return np.dtype(f"u{native.itemsize}")
    return native


def _of_hdf5(file: h5py.File) -> tuple[dict[str, Variable], dict[str, Any]]:
    out: dict[str, Variable] = {}
    for name in file:
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise UserError(f"{file.filename}: {name} is a link to another file: copy the data in (nccopy)")
        item = file[name]
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "iufS":
            continue
        if _text_of(item.attrs.get("NAME")).startswith(_NO_VARIABLE):
            continue
        if item.external or item.is_virtual:
            raise UserError(f"{file.filename}: the data of {name} lie in another file: copy them in (h5repack)")
        if wrong := overfull(item):
            raise UserError(f"{file.filename}: {name} {wrong}")
        attributes = {key: _attribute(item.attrs, key) for key in item.attrs if key not in _BOOKKEEPING}
        dims: list[str] = []
        for place, dim in enumerate(item.dims):
            # A dimension scale of its own is a coordinate: its dimension has its name.
            own = item.ndim == 1 and h5py.h5ds.is_scale(item.id)
            dims.append(name if own else (dim[0].name.rpartition("/")[2] if len(dim) else f"{name}_{place}"))
        out[name] = Variable(name, tuple(dims), item.shape, _native(item.dtype, attributes), attributes)
    return out, {key: _attribute(file.attrs, key) for key in file.attrs if key not in _BOOKKEEPING}


_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"
"""The mark of a dimension that the library stores as a dataset though it has no coordinate."""
_BOOKKEEPING = {"DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "_Netcdf4Dimid", "_Netcdf4Coordinates"}


def _text_of(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _attribute(attributes: Any, name: str) -> Any:
    """Text as str, numbers as arrays; None for what is neither."""
    value = attributes[name]
    if isinstance(value, h5py.Empty):
        return ""
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO" and value.size == 1:
        value = value.ravel()[0]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return str(value)
    found = np.asarray(value)
    return found if found.dtype.kind in "iuf" else None


def _of_classic(file: Any) -> tuple[dict[str, Variable], dict[str, Any]]:
    def attributes_of(item: Any) -> dict[str, Any]:
        return {
            key: value.decode("utf-8", "replace") if isinstance(value, bytes) else np.asarray(value)
            for key, value in item._attributes.items()
        }

    out = {}
    for name, item in file.variables.items():
        attributes = attributes_of(item)
        dtype = np.dtype(item.data.dtype)
        out[name] = Variable(name, tuple(item.dimensions), item.data.shape, _native(dtype, attributes), attributes)
    return out, attributes_of(file)
