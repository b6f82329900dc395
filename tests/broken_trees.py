"""Folders and tables of images with everything that goes wrong in them, and what must become of each file."""

import io
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

SOUND, BAD, LEFT, LOST, LOOSE = "sound", "bad", "left", "lost", "loose"
CLASSES = ("ant", "bee", "cow é", "\udce9ne", "d,e", "f g")


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _contents() -> dict[str, tuple[bytes, str, str]]:
    """Name of a fault -> (bytes, extension, what becomes of it)."""
    red = Image.new("RGB", (11, 7), (200, 30, 40))
    frames = [red, Image.new("RGB", (11, 7))]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    jpeg, png = _encode(red, "JPEG"), _encode(red, "PNG")
    return {
        "png": (png, ".png", SOUND),
        "jpeg": (jpeg, ".JPG", SOUND),
        "wrong extension": (jpeg, ".png", SOUND),
        "cmyk": (_encode(Image.new("CMYK", (9, 9)), "JPEG"), ".jpg", SOUND),
        "16 bit": (_encode(Image.fromarray(np.full((9, 9), 51400, np.uint16)), "PNG"), ".png", SOUND),
        "animated": (_encode(red, "GIF", save_all=True, append_images=frames[1:]), ".gif", SOUND),
        "rotated": (_encode(red, "JPEG", exif=rotated), ".jpeg", SOUND),
        "broken exif": (jpeg[:2] + b"\xff\xe1\0\x10Exif\0\0" + b"\xff" * 8 + jpeg[2:], ".jpg", SOUND),
        "transparent": (_encode(Image.new("RGBA", (9, 9)), "PNG"), ".png", SOUND),
        "empty": (b"", ".jpg", BAD),
        "cut": (jpeg[: len(jpeg) // 2], ".jpg", BAD),
        "cut png": (png[:50], ".png", BAD),
        "text": (b"not an image", ".png", BAD),
        "page": (b"<!DOCTYPE html><html></html>", ".jpg", BAD),
        "floats": (_encode(Image.new("F", (5, 5)), "TIFF"), ".tiff", BAD),
        "note": (b"text", ".txt", LEFT),
        "no extension": (png, "", LEFT),
        "drawing": (b"<svg/>", ".svg", LEFT),
        "hidden": (png, ".png", LEFT),
        "system": (b"x", ".db", LEFT),
    }


CONTENTS = _contents()
LINKS = ("nowhere", "lost", "loop", "good link", "above", "pipe")


@dataclass
class Tree:
    """A source below `root`, and by the names that prepare gives: what must become of each file."""

    root: Path
    wanted: dict[str, str] = field(default_factory=dict)
    empty_classes: int = 0

    def count(self, *whats: str) -> int:
        """How many files must end so."""
        counted = Counter(self.wanted.values())
        return sum(counted[what] for what in whats)

    def put(self, chance: random.Random, folder: str, number: int) -> None:
        """A file with some fault in a folder of a class."""
        what = chance.choice([*CONTENTS, *LINKS])
        stem = chance.choice(["a", "photo 1", "é", "x\ny", "\udcff", "IMG"]) + str(number)
        if what in CONTENTS:
            data, extension, end = CONTENTS[what]
            name = {"hidden": f".{stem}{extension}", "system": "Thumbs.db"}.get(what, stem + extension)
            path = self.root / folder / name
            if path.exists():
                return
            path.write_bytes(data)
            self._note(folder, name, end)
            return
        name = {"lost": stem, "above": stem}.get(what, f"{stem}.png")
        path = self.root / folder / name
        if what == "pipe":
            os.mkfifo(path)
        elif what == "good link":
            (self.root.parent / "elsewhere.png").write_bytes(CONTENTS["png"][0])
            path.symlink_to(self.root.parent / "elsewhere.png")
        else:
            path.symlink_to({"loop": name, "above": self.root / folder}.get(what, "nowhere.png"))
        self._note(folder, name, {"lost": LOST, "above": LEFT, "good link": SOUND}.get(what, BAD))

    def _note(self, folder: str, name: str, end: str) -> None:
        self.wanted[os.fsencode(f"{folder}/{name}").decode("utf-8", "backslashreplace")] = end


def make_tree(root: Path, chance: random.Random) -> Tree:
    """One to five classes with up to six files each, some two folders deep; sometimes every class has a sound image."""
    tree = Tree(root)
    repaired = chance.random() < 0.7
    root.mkdir(parents=True)
    for name in chance.sample(CLASSES, chance.randrange(2 if repaired else 1, 6)):
        folders = [name, f"{name}/deeper"][: chance.randrange(1, 3)]
        for folder in folders:
            (root / folder).mkdir()
            for number in range(chance.randrange(7)):
                tree.put(chance, folder, number)
        if repaired:
            for copy in range(2):  # of one content: the same image twice
                (root / name / f"sound{copy}.png").write_bytes(CONTENTS["png"][0])
                tree._note(name, f"sound{copy}.png", SOUND)
        ours = [
            path
            for path in tree.wanted
            if path.startswith(os.fsencode(f"{name}/").decode("utf-8", "backslashreplace"))
        ]
        tree.empty_classes += not any(tree.wanted[path] in (SOUND, BAD) for path in ours)
    if chance.random() < 0.3:
        (root / "no label.png").write_bytes(CONTENTS["png"][0])
        tree.wanted["no label.png"] = LOOSE
    return tree
