"""`fastdrpl confusion`: averaging counts, and counting with real preprocessing over class folders."""

import re
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model, get_model_weights

from fastdrpl.cli import main
from fastdrpl.confusion import PUBLISHED, ConfusionConfig, average, make_confusion, read_counts
from fastdrpl.loaders.errors import DataError, UserError
from fastdrpl.loaders.sources.imagenet_small import class_order
from fastdrpl.models import pretrained
from fastdrpl.transitions import load_confusion

SORTED = sorted(class_order())
RIGHT = np.eye(1000, dtype=np.int64)


def random_counts(seed: int, right: int = 40) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.multinomial(50 - right, np.full(1000, 1e-3), size=1000) + right * RIGHT


def from_counts(path: Path, *words: str) -> Path:
    """The stored matrix made of a file of counts by the command."""
    out = path.with_name("confusion.npz")
    assert main(["confusion", "--counts", str(path), "--out", str(out), *words]) == 0
    return out


# --- given counts ---


def test_the_mean_of_row_normalised_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one, two = random_counts(0), 3 * random_counts(1, right=10)
    np.savez(tmp_path / "counts.npz", one=one, two=two)
    confusion = load_confusion(from_counts(tmp_path / "counts.npz"))
    expected = [[(one[k, j] / 50 + two[k, j] / 150) / 2 for j in range(1000)] for k in range(0, 1000, 97)]
    np.testing.assert_allclose(confusion.matrix[::97], expected, rtol=1e-12)
    np.testing.assert_allclose(confusion.matrix.sum(axis=1), 1)
    assert confusion.class_names == tuple(SORTED) and confusion.networks == ("one", "two")
    assert confusion.images == (50_000, 150_000)
    said = capsys.readouterr().out
    assert re.search(r"one: 80\.\d\d % of 50,000 images right\ntwo: 20\.\d\d % of 150,000 images right", said)


def test_networks_and_kinds_of_files(tmp_path: Path):
    one, two = random_counts(0), random_counts(1)
    np.savez(tmp_path / "counts.npz", one=one.astype(np.uint8), two=two.astype(np.float32))
    np.save(tmp_path / "alone.npy", two)
    chosen = load_confusion(from_counts(tmp_path / "counts.npz", "--networks", "two"))
    alone = load_confusion(from_counts(tmp_path / "alone.npy"))
    assert chosen.networks == ("two",) and alone.networks == ("alone",)
    assert np.array_equal(chosen.matrix, alone.matrix) and np.array_equal(alone.matrix, two / 50)


def test_the_file_may_say_its_own_order_of_classes(tmp_path: Path):
    counts, order = random_counts(0), np.random.default_rng(2).permutation(1000)
    names = np.array(SORTED)[order]
    np.savez(tmp_path / "counts.npz", net=counts[np.ix_(order, order)], wnids=names)
    assert np.array_equal(read_counts(tmp_path / "counts.npz")["net"], counts)


def test_the_known_accuracy_of_the_real_counts(
    real_meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "confusion.npz"
    assert (
        main(["confusion", "--counts", str(real_meta / "imagenet_val_confusion.npz"), "--out", str(out)]) == 0
    )
    said = capsys.readouterr()
    for line in ("vgg16: 70.66 %", "resnet50: 75.06 %", "inception_v3: 69.25 %", "densenet161: 76.92 %"):
        assert f"{line} of 50,000 images right" in said.out
    # torchvision states 77.29 % for Inception, and about what was counted for the others
    assert said.err.count("should get about") == 1 and "inception_v3 should get about 77.3 %" in said.err
    assert load_confusion(out).matrix.trace() / 1000 == pytest.approx(0.7297, abs=1e-4)


def spoiled(**changes: object) -> np.ndarray:
    counts = random_counts(0)
    for name, value in changes.items():
        counts[int(name.removeprefix("row"))] = value
    return counts


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"net": np.eye(999)}, r"must be 1000 x 1000, these are \(999, 999\)"),
        ({"net": spoiled(row7=-1)}, "must not be negative, the least is -1"),
        ({"net": random_counts(0) / 50}, "must be whole numbers"),
        ({"net": np.where(RIGHT, np.nan, 0)}, "must be whole numbers"),
        ({"net": np.full((1000, 1000), "x")}, "must be whole numbers"),
        ({"net": spoiled(row7=0, row9=0)}, f"2 of 1000 classes have no image .* of net, the first is {SORTED[7]}"),
        ({"net": random_counts(0).T}, "the columns are the true classes"),
        ({"net": random_counts(0), "wnids": np.array(SORTED[:-1])}, "some are missing"),
        ({"net": random_counts(0), "wnids": np.array([*SORTED[:-1], SORTED[0]])}, "come twice"),
        ({"net": random_counts(0), "wnids": np.array([*SORTED[:-1], "cow"])}, "'cow' is none of them"),
        ({}, "has no counts"),
    ],
)  # fmt: skip
def test_tables_that_are_no_counts(tables: dict, message: str, tmp_path: Path):
    np.savez(tmp_path / "counts.npz", **tables)
    with pytest.raises(DataError, match=message):
        average(read_counts(tmp_path / "counts.npz"))


def test_files_that_are_no_counts(tmp_path: Path):
    (tmp_path / "text.npz").write_text("x")
    with pytest.raises(DataError, match="not a readable file of counts"):
        read_counts(tmp_path / "text.npz")
    for name in ("none.npz", "none.csv"):
        with pytest.raises(UserError, match=r"existing \.npz or \.npy"):
            read_counts(tmp_path / name)
    np.savez(tmp_path / "counts.npz", vgg16=random_counts(0))
    with pytest.raises(UserError, match="no counts of 'vgg61'; did you mean 'vgg16'"):
        read_counts(tmp_path / "counts.npz", ("vgg61",))
    made = from_counts(tmp_path / "counts.npz")
    with pytest.raises(DataError, match="must be 1000 x 1000"):
        read_counts(made)  # its own output


# --- counting ---


class Colours(nn.Module):
    """Knows a class by the colour of a picture, and takes each for the `shift`-th after it; notes what it sees."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift, self.shapes, self.batches = shift, set(), 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.shapes.add(tuple(pixels.shape[1:]))
        self.batches += 1
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        colour = (pixels.mean(dim=(2, 3)) * std + mean) * 255  # published normalisation, undone
        label = (colour[:, 0] / 8).round() * 32 + (colour[:, 1] / 8).round()
        return nn.functional.one_hot((label.long() + self.shift) % 1000, 1000).float()


def colour_of(label: int) -> tuple[int, int, int]:
    return label // 32 * 8, label % 32 * 8, 100


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of its own colour for each class, in folders; the first class has three more files."""
    folder = tmp_path_factory.mktemp("val")
    for label, name in enumerate(SORTED):
        (folder / name).mkdir()
        Image.new("RGB", (9, 7), colour_of(label)).save(folder / name / "one.PNG")
    Image.new("RGB", (300, 500), colour_of(3)).save(folder / SORTED[0] / "like three.bmp")
    (folder / SORTED[0] / "notes.txt").write_text("no picture")
    (folder / ".cache").mkdir()
    return folder


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Colours]:
    """What the loader of networks gives in place of the big ones; the preprocessing is the real one."""
    made = {name: Colours(shift) for shift, name in enumerate(PUBLISHED)}

    def load(names, folder):
        return {
            name: (made[name].eval(), get_model_weights(name)["IMAGENET1K_V1"].transforms()) for name in names
        }

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    return made


def test_pictures_are_counted(pictures: Path, networks: dict[str, Colours], tmp_path: Path, capsys):
    chosen = ["vgg16", "resnet50", "inception_v3"]
    words = ["confusion", "--images", str(pictures), "--out", str(tmp_path / "c.npz"), "--device", "cpu"]
    assert main([*words, "--networks", *chosen, "--batch_size", "300", "--workers", "2"]) == 0
    confusion = load_confusion(tmp_path / "c.npz")
    expected = np.mean([np.roll(RIGHT, shift, axis=1) for shift in range(3)], axis=0)
    expected[0] = np.mean([(RIGHT[shift] + RIGHT[3 + shift]) / 2 for shift in range(3)], axis=0)
    np.testing.assert_allclose(confusion.matrix, expected)
    assert confusion.networks == tuple(chosen) and confusion.images == (1001,) * 3
    assert confusion.accuracy == (1000 / 1001, 0, 0)
    assert [networks[name].shapes for name in chosen] == [{(3, 224, 224)}] * 2 + [{(3, 299, 299)}]
    assert [networks[name].batches for name in PUBLISHED] == [4, 4, 4, 0]
    said = capsys.readouterr()
    assert (
        "vgg16: 99.90 % of 1,001 images right" in said.out and "resnet50 should get about 76.1 %" in said.err
    )
    assert "1,001 of 1,001" in said.err  # the progress


def test_unreadable_pictures_are_named_and_left_out(
    pictures: Path, networks: dict[str, Colours], capsys: pytest.CaptureFixture[str]
):
    place = pictures / SORTED[5]
    (place / "broken.jpeg").write_bytes(b"\xff\xd8\xff\xe0 no")
    (place / "lost.jpg").symlink_to("nowhere.jpg")
    Image.new("CMYK", (8, 8)).save(place / "print.jpg")  # a few of ImageNet's are: converted, not refused
    out = pictures.parent / "c.npz"
    config = ConfusionConfig(out=out, images=pictures, networks=("vgg16",), device="cpu", batch_size=1000)
    try:
        confusion = make_confusion(config)
    finally:
        for name in ("broken.jpeg", "lost.jpg", "print.jpg"):
            (place / name).unlink()
    said = capsys.readouterr().err
    assert "2 of 1004 images cannot be read and are left out" in said
    assert "broken.jpeg: damaged" in said and "lost.jpg: damaged" in said
    assert confusion.images == (1002,)
    assert confusion.matrix[5, 5] == 0.5  # its own picture, and the white one that looks like another class


def test_class_folders_must_be_those_of_imagenet(
    pictures: Path, networks: dict[str, Colours], tmp_path: Path
):
    def count(folder: Path) -> None:
        make_confusion(ConfusionConfig(out=tmp_path / "c.npz", images=folder, device="cpu"))

    with pytest.raises(UserError, match="no such folder of images"):
        count(pictures / "none")
    with pytest.raises(UserError, match=f"1000 are missing, {SORTED[0]} for one"):
        count(pictures / SORTED[0])
    (pictures / "n99999999").mkdir()
    with pytest.raises(UserError, match="'n99999999' is none"):
        count(pictures)
    (pictures / "n99999999").rmdir()
    picture = pictures / SORTED[9] / "one.PNG"
    picture.rename(picture.with_suffix(".hidden"))
    with pytest.raises(DataError, match=f"1 of 1000 class folders have no image, the first is {SORTED[9]}"):
        count(pictures)
    picture.with_suffix(".hidden").rename(picture)
    content = picture.read_bytes()
    picture.write_bytes(content[:20])
    with pytest.raises(
        DataError, match=f"1 of 1000 classes have no image in the counts of vgg16.* {SORTED[9]}"
    ):
        count(pictures)
    picture.write_bytes(content)
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "c.npz"], "neither images nor counts"),
        (["--out", "c.npz", "--images", "v", "--counts", "c"], "--images and --counts"),
        (["--out", "c.npy", "--images", "v"], "is an .npz file"),
        (["--out", "nowhere/c.npz", "--images", "v"], "no such folder"),
        (
            ["--out", "c.npz", "--images", "v", "--networks", "vgg61"],
            "unknown network 'vgg61'; did you mean 'vgg16'",
        ),
        (["--out", "c.npz", "--images", "v", "--networks", "vgg16", "vgg16"], "named twice"),
        (["--out", "c.npz", "--images", "v", "--batch_size", "0"], "--batch_size 0"),
        (["--out", "c.npz", "--counts", "v", "--weights", "w"], "--weights are for --images"),
    ],
)
def test_requests_that_cannot_be(words: list[str], message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["confusion", *words]) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["confusion", "--images", str(tmp_path), "--out", str(tmp_path / "c.npz"), "--device", "cuda"]
    assert main(words) == 2 and "torch sees no GPU" in capsys.readouterr().err


# --- the networks ---


def file_of(name: str) -> str:
    return Path(get_model_weights(name)["IMAGENET1K_V1"].url).name


@pytest.mark.parametrize("name", ["densenet161", "inception_v3"])
def test_the_real_networks_are_read_as_torchvision_reads_them(name: str, tmp_path: Path, monkeypatch):
    """Random weights under the published file name; densenet's in the old spelling, without counts of batches."""
    options = {"init_weights": False} if name == "inception_v3" else {}
    state = get_model(name, weights=None, **options).state_dict()
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))([12]\.)")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    if name == "densenet161":
        state = {old.sub(r"\1.\2", key): state[key] for key in state if "num_batches_tracked" not in key}
    torch.save(dict(state), folder / file_of(name))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(
        pretrained, "_check_hash", lambda file: None
    )  # these weights are not the published ones
    ((network, transform),) = pretrained.load_pretrained([name], None).values()
    theirs = get_model(name, weights="IMAGENET1K_V1").eval()
    size = 299 if name == "inception_v3" else 224
    pixels = transform(Image.effect_noise((400, 300), 90).convert("RGB"))
    assert pixels.shape == (3, size, size)
    with torch.inference_mode():
        ours, wanted = network(pixels[None]), theirs(pixels[None])
    assert ours.shape == (1, 1000) and torch.isfinite(ours).all() and ours.std() > 0
    assert torch.equal(ours, wanted)


def test_another_file_under_the_published_name_is_refused(tmp_path: Path):
    (tmp_path / file_of("vgg16")).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"not the published weights: its sha256[\s\S]*vgg16-397923af\.pth"):
        pretrained.load_pretrained(["vgg16"], tmp_path)


def test_weights_hold_nothing_but_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that would run code is refused, even where its hash were right."""
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (ran,)

    torch.save({"a": Trap()}, tmp_path / file_of("resnet50"))
    monkeypatch.setattr(pretrained, "_check_hash", lambda file: None)
    with pytest.raises(DataError, match="not the published weights"):
        pretrained.load_pretrained(["resnet50"], tmp_path)
    assert not ran.exists()


def test_without_a_network_the_files_and_their_place_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*words, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError) as error:
        pretrained.load_pretrained(list(PUBLISHED), tmp_path)
    assert not isinstance(error.value, DataError)
    assert "no route to host" in str(error.value) and f"into {tmp_path}" in str(error.value)
    assert all(file_of(name) in str(error.value) for name in PUBLISHED)


def test_the_stated_accuracies_are_torchvisions():
    for name, accuracy in PUBLISHED.items():
        stated = get_model_weights(name)["IMAGENET1K_V1"].meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert accuracy == pytest.approx(stated / 100)
