"""Label files that others publish: read by a reader that runs nothing, checked against the data, truth kept."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdrpl.config import Config
from fastdrpl.errors import DataError, UserError
from fastdrpl.label_files import Rows, is_foreign, read_labels
from fastdrpl.labels import Labels
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loaders.torch_files import read_label_sets
from fastdrpl.noise import draw_noise
from fastdrpl.noise_config import NoiseConfig
from fastdrpl.view import training_view

N, C = 600, 10
NAMES = tuple(f"class {k}" for k in range(C))
IDS = tuple(f"train/{k % C}/photo {k}.png" for k in range(N))


def truth() -> np.ndarray:
    return np.random.default_rng(1).integers(0, C, N)


def noisy(rate: float, seed: int = 2) -> np.ndarray:
    draws = np.random.default_rng(seed)
    labels = truth()
    chosen = draws.permutation(N)[: int(rate * N)]
    labels[chosen] = (labels[chosen] + draws.integers(1, C, len(chosen))) % C
    return labels


def rows(**change: Any) -> Rows:
    fields = {
        "truth": truth(),
        "given": truth(),
        "source_row": np.arange(N),
        "total": N,
        "class_names": NAMES,
    }
    return Rows(**fields | {"ids": IDS} | change)


def human() -> dict[str, np.ndarray]:
    """As CIFAR-10N is published."""
    sets = {"clean_label": truth(), "worse_label": noisy(0.4), "aggre_label": noisy(0.1)}
    return sets | {f"random_label{k}": noisy(0.18, k) for k in (1, 2, 3)}


def save_old(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_tensors(sets: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(np.r_[values, values])[N:] for name, values in sets.items()
    }  # with an offset


@pytest.mark.parametrize("save", [torch.save, save_old])
def test_a_label_set_of_cifar_10n_by_its_name(tmp_path: Path, save: Any) -> None:
    save(human(), tmp_path / "human.pt")
    labels = read_labels(tmp_path / "human.pt", "worse_label", rows())
    assert np.array_equal(labels.given, noisy(0.4)) and np.array_equal(labels.truth, truth())
    with pytest.raises(
        UserError, match=r"which of its label sets\? worse_label, aggre_label, random_label1"
    ) as caught:
        read_labels(tmp_path / "human.pt", None, rows())
    assert "--noise.file_column" in str(caught.value.fix)
    with pytest.raises(UserError, match="no label set 'worst' in the file; it has clean_label, worse_label"):
        read_labels(tmp_path / "human.pt", "worst", rows())


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.int16])
def test_arrays_tensors_and_lists_of_any_size(tmp_path: Path, kind: Any) -> None:
    sets = {name: values.astype(kind) for name, values in human().items()}
    for content in (sets, as_tensors(sets), {name: values.tolist() for name, values in sets.items()}):
        torch.save(content, tmp_path / "x.pt")
        found = read_label_sets(tmp_path / "x.pt")
        assert found.keys() == sets.keys()
        assert all(np.array_equal(found[name], sets[name]) and found[name].dtype == np.int64 for name in sets)
    for alone in (torch.from_numpy(sets["worse_label"]), sets["worse_label"]):
        torch.save(alone, tmp_path / "x.pt")
        assert np.array_equal(read_label_sets(tmp_path / "x.pt")[""], noisy(0.4))


def test_cifar_100n_takes_the_fine_labels(tmp_path: Path) -> None:
    coarse = truth() // 5
    torch.save(
        {
            "clean_label": truth(),
            "noisy_coarse_label": coarse,
            "clean_coarse_label": coarse,
            "noisy_label": noisy(0.3),
        },
        tmp_path / "x.pt",
    )
    assert np.array_equal(read_labels(tmp_path / "x.pt", None, rows()).given, noisy(0.3))


class _Hostile:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


class _HostileState(_Hostile):
    def __reduce__(self) -> Any:
        return eval, (f"open({self.mark!r}, 'w')",)


@pytest.mark.parametrize("save", [torch.save, save_old])
@pytest.mark.parametrize("kind", [_Hostile, _HostileState])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, save: Any, kind: Any) -> None:
    """R9."""
    mark = tmp_path / "it ran"
    for content in (
        {"worse_label": kind(str(mark))},
        [kind(str(mark))],
        OrderedDict(worse_label=kind(str(mark))),
    ):
        save(content, tmp_path / "hostile.pt")
        with pytest.raises(DataError, match="more than plain arrays") as caught:
            read_labels(tmp_path / "hostile.pt", "worse_label", rows())
        assert "hostile.pt" in str(caught.value) and not mark.exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"worse_label": [1, 2]}))
    with pytest.raises(DataError, match=r"no file of torch\.save"):
        read_label_sets(tmp_path / "plain.pt")


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), tensors=st.booleans())
def test_mangled_files_are_refused_or_plain(tmp_path: Path, data: Any, tensors: bool) -> None:
    sets = {"worse_label": np.arange(40) % C}
    torch.save(
        {name: torch.from_numpy(v) for name, v in sets.items()} if tensors else sets, tmp_path / "x.pt"
    )
    content = bytearray((tmp_path / "x.pt").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.pt").write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    try:
        found = read_label_sets(tmp_path / "x.pt")
    except DataError as error:
        assert "x.pt" in str(error)
        return
    assert all(values.dtype == np.int64 and values.ndim == 1 for values in found.values())


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.npy", lambda path, labels: np.save(path, labels)),
        ("x.txt", lambda path, labels: path.write_text("\n".join(map(str, labels)))),
        ("x.csv", lambda path, labels: path.write_text("label\r\n" + "\r\n".join(map(str, labels)))),
        ("y.csv", lambda path, labels: path.write_text("".join(f"{k}\n" for k in labels))),
        ("z.txt", lambda path, labels: path.write_text("".join(f"{NAMES[k]}\n" for k in labels))),
        (
            "cleanlab.csv",
            lambda path, labels: path.write_text(
                ",is_label_issue,label_quality,given_label,predicted_label\n"
                + "".join(f"{row},False,0.9,{k},0\n" for row, k in enumerate(labels))
            ),
        ),
        (
            "files.csv",
            lambda path, labels: path.write_text(
                "file,label\n" + "".join(f"{IDS[row]},{NAMES[labels[row]]}\n" for row in reversed(range(N)))
            ),
        ),
        (
            "files.tsv",
            lambda path, labels: path.write_text(
                "".join(f"photo {row}.png\t{labels[row]}\n" for row in range(N))
            ),
        ),
    ],
)
def test_lines_arrays_tables_and_cleanlab(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name, noisy(0.3))
    assert is_foreign(tmp_path / name)
    labels = read_labels(tmp_path / name, None, rows())
    assert np.array_equal(labels.given, noisy(0.3)) and np.array_equal(labels.truth, truth())
    unknown = rows(truth=np.full(N, -1))  # nobody vouches for the labels of the data set
    assert (read_labels(tmp_path / name, None, unknown).truth == -1).all()


def test_samples_that_are_fewer_than_the_rows(tmp_path: Path) -> None:
    chosen = np.arange(3, N, 7)
    some = rows(source_row=chosen, truth=truth()[chosen], given=truth()[chosen])
    np.save(tmp_path / "all.npy", noisy(0.3))
    np.save(tmp_path / "some.npy", noisy(0.3)[chosen])
    for name in ("all.npy", "some.npy"):
        labels = read_labels(tmp_path / name, None, some)
        assert np.array_equal(labels.given, noisy(0.3)[chosen]) and np.array_equal(labels.source_row, chosen)


def test_clean_labels_become_the_truth_where_it_is_not_known(tmp_path: Path) -> None:
    torch.save(human(), tmp_path / "x.pt")
    labels = read_labels(tmp_path / "x.pt", "aggre_label", rows(truth=np.full(N, -1)))
    assert np.array_equal(labels.truth, truth()) and labels.is_noisy.noisy.mean() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (noisy(0.3)[:-1], "the file has 599 labels, the data set has 600 training rows"),
        (
            noisy(0.3) + 1,
            r"labels are 1\.\.10, the data set has classes 0\.\.9; they seem to be counted from 1",
        ),
        (np.where(np.arange(N) == 5, -1, noisy(0.3)), r"labels are -1\.\.9"),
        (np.roll(noisy(0.1), 1), "as chance would .*: another order, or other classes"),
        (np.zeros((N, 2), np.int64), "shape"),
        (noisy(0.3) / 2, "type"),
    ],
)
def test_lengths_ranges_and_orders_are_checked(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", labels)
    with pytest.raises(DataError, match=message) as caught:
        read_labels(tmp_path / "x.npy", None, rows())
    assert "x.npy" in str(caught.value)


def test_clean_labels_of_another_order_are_noticed(tmp_path: Path) -> None:
    torch.save(human() | {"clean_label": np.r_[truth()[1:], truth()[:1]]}, tmp_path / "x.pt")
    with pytest.raises(
        DataError, match=r"its clean labels differ from those of the data set for .* another order"
    ):
        read_labels(tmp_path / "x.pt", "worse_label", rows())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nnobody.png,1\n", "no image 'nobody.png'"),
        (f"file,label\n{IDS[0]},1\n{IDS[0]},1\n", "has two labels"),
        (
            f"file,label\n{IDS[0]},1\n",
            "599 of 600 images have no label in the file, train/1/photo 1.png for one",
        ),
        ("label\ncat\n", "'cat' is no class of the data set"),
        ("", "it has no labels"),
        ("a,b,c\n1,2,3\n", "none of them is called label"),
        ("file,label\na.png\n", "line 2 has 1 fields"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "x.csv", None, rows())


def test_own_files_are_told_from_those_of_others(tmp_path: Path) -> None:
    own = Labels(noisy(0.3), truth(), np.arange(N), NAMES)
    for ending in (".npz", ".csv", ".parquet"):
        own.save(tmp_path / f"own{ending}")
        assert not is_foreign(tmp_path / f"own{ending}")
        config = NoiseConfig(file=tmp_path / f"own{ending}")
        assert draw_noise(truth(), np.arange(N), NAMES, config).fingerprint == own.fingerprint
        with pytest.raises(UserError, match="one set of labels"):
            draw_noise(truth(), np.arange(N), NAMES, NoiseConfig(file=config.file, file_column="x"))
    with pytest.raises(UserError, match="a label set of which file"):
        NoiseConfig(file_column="x")
    with pytest.raises(UserError, match="no such label file"):
        draw_noise(truth(), np.arange(N), NAMES, NoiseConfig(file=tmp_path / "nowhere.pt"))


def test_a_run_is_told_the_labels_and_says_the_noise(tmp_path: Path) -> None:
    prepare(PrepareConfig(kind="digits", out=tmp_path / "digits"), quiet=True)
    dataset = open_dataset(tmp_path / "digits")
    right = dataset.split("train").label
    wrong = right.copy()
    wrong[::4] = (wrong[::4] + 1) % 10
    torch.save({"clean_label": right, "human_label": wrong}, tmp_path / "human.pt")
    view = training_view(Config(recipe="digits", noise=NoiseConfig(file=tmp_path / "human.pt")), dataset)
    assert np.array_equal(view.labels.given, wrong) and np.array_equal(view.labels.truth, right)
    (note,) = view.notes
    assert f"{np.mean(wrong != right):.2%} of {len(right):,} are wrong" in note
