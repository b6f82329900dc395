"""Arrays of whole numbers in a file that `torch.save` wrote, read without torch and without running anything.

Such a file is a zip with a pickle and the bytes of its tensors, or, from before torch 1.6, four pickles in a row. The
pickle may name tensors, arrays of numpy and plain containers; every other name is refused before anything is called.
"""

import io
import os
import zipfile
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from fastdrpl.loaders.archives import DAMAGE, Limits, list_zip
from fastdrpl.loaders.errors import DataError
from fastdrpl.loaders.pickles import Step, _damage_named, _PlainUnpickler, pickle, whole_numbers

LIMITS = Limits(members=10_000, nbytes=1 << 30, swell=50, free=1 << 28)
_OLD = 0x1950A86A20F9469CFC6C  # what a file from before torch 1.6 begins with
_STORAGES = {
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
}


class _Inert:
    """Stands for whatever belongs to a tensor and is of no use here."""

    def __init__(self, *_: object) -> None:
        """Nothing is kept."""


class _StorageKind(_Inert):
    """Stands for the class of a tensor's storage."""


class _Storage:
    """Stands for the bytes of a tensor: their kind, and their name in the archive."""

    def __init__(self, identity: object) -> None:
        if not (isinstance(identity, tuple) and len(identity) == 5 and isinstance(identity[2], str)):
            raise ValueError("a tensor without bytes")
        self.kind, self.key = getattr(identity[1], "numbers", None), identity[2]


class _Tensor:
    """Stands for a tensor, as the file describes it."""

    def __init__(self, storage: object, offset: object, shape: object, stride: object, *_: object) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def integers(self, read: Any) -> np.ndarray:
        """The tensor (n,) as int64. Raises ValueError for any other kind."""
        if not (isinstance(self.storage, _Storage) and self.storage.kind and type(self.offset) is int):
            raise ValueError("a tensor that is not of whole numbers")
        if not (isinstance(self.shape, tuple) and len(self.shape) == 1 and self.stride == (1,)):
            raise ValueError("a tensor that is no single row of numbers")
        values = np.frombuffer(read(self.storage.key), self.storage.kind)
        if not (
            type(self.shape[0]) is int and 0 <= self.offset <= self.offset + self.shape[0] <= len(values)
        ):
            raise ValueError("a tensor that is larger than its bytes")
        return values[self.offset : self.offset + self.shape[0]].astype(np.int64)


_KINDS = {name: type(name, (_StorageKind,), {"numbers": numbers}) for name, numbers in _STORAGES.items()}


class _TorchUnpickler(_PlainUnpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if (module, name) == ("collections", "OrderedDict"):  # hooks of a tensor, always empty
            return _Inert
        if module == "torch" and name.endswith("Storage"):
            return _KINDS.get(name, _StorageKind)
        return super().find_class(module, name)

    def persistent_load(self, identity: object) -> _Storage:
        """The storage that a tensor names."""
        return _Storage(identity)

    dispatch: ClassVar[dict[int, Step]] = {
        **_PlainUnpickler.dispatch,
        pickle.BINPERSID[0]: pickle._Unpickler.dispatch[pickle.BINPERSID[0]],  # type: ignore[attr-defined]
    }


def read_label_sets(path: Path) -> dict[str, np.ndarray]:
    """Name -> (n,) int64 of every row of whole numbers in the file; a lone array has the name "".

    Raises DataError for a file that is damaged, would run code, or holds no such arrays. OSError as `open`.
    """
    where = str(path)
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            file.seek(0)
            return _label_sets(_read_old(file, where), _no_tensors, where)
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                members = {
                    info.filename: info
                    for info in list_zip(archive, LIMITS, where, os.fstat(file.fileno()).st_size)
                }
                found = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
                if len(found) != 1:
                    raise DataError("the file is no file of torch.save: it has no data.pkl", where=where)
                folder = found[0].removesuffix("data.pkl")
                order = (
                    archive.read(members[f"{folder}byteorder"])
                    if f"{folder}byteorder" in members
                    else b"little"
                )
                if order != b"little":
                    raise DataError("the file holds numbers in another order of bytes", where=where)

                def read(key: str) -> bytes:
                    if f"{folder}data/{key}" not in members:
                        raise ValueError("a tensor without bytes")
                    return archive.read(members[f"{folder}data/{key}"])

                with _damage_named(where):
                    content = _TorchUnpickler(
                        io.BytesIO(archive.read(members[found[0]])), encoding="bytes"
                    ).load()
                return _label_sets(content, read, where)
        except DAMAGE as error:
            raise DataError(f"the file is damaged: {str(error)[:200]}", where=where) from None


def _read_old(file: IO[bytes], where: str) -> Any:
    with _damage_named(where):
        if _PlainUnpickler(file, encoding="bytes").load() != _OLD:
            raise ValueError("it is no file of torch.save")
        for _ in range(2):  # the version of the format, and the machine
            _PlainUnpickler(file, encoding="bytes").load()
        return _PlainUnpickler(file, encoding="bytes").load()


def _no_tensors(key: str) -> bytes:
    raise ValueError("a tensor in a file from before torch 1.6")


def _label_sets(content: Any, read: Any, where: str) -> dict[str, np.ndarray]:
    entries = content.items() if isinstance(content, dict) else [("", content)]
    found: dict[str, np.ndarray] = {}
    reason = "it is empty"
    for key, value in entries:
        name = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
        try:
            found[name] = value.integers(read) if isinstance(value, _Tensor) else whole_numbers(value)
        except ValueError as error:  # of another kind: it is no set of labels
            reason = str(error)
    if not found:
        raise DataError(f"no labels in the file: {reason}", where=where)
    return found
