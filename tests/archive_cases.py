"""Archives that tests write."""

import io
import tarfile
from typing import Any


def add(archive: tarfile.TarFile, name: str, data: bytes = b"x", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))
