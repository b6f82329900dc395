"""`fastdrpl bench loaders`: every back end is measured, what is missing is said, and a recommendation follows."""

import sys
from pathlib import Path

import pytest
from need import need
from rich.console import Console

from fastdrpl.bench_loaders import BenchConfig, Speed, bench_loaders, recommend
from fastdrpl.cli import main
from fastdrpl.errors import UserError
from fastdrpl.loaders.prepare import PrepareConfig, prepare
from fastdrpl.loading import LOADERS


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "digits"
    prepare(PrepareConfig(kind="digits", out=out, format="shards"), quiet=True)
    return out


def test_all_back_ends_are_measured_and_one_recommended(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("ffcv"), need("nvidia.dali")
    config = BenchConfig(data=digits, images=300, turns=2, workers=1, device="cpu")
    speeds = bench_loaders(config, Console(width=100, highlight=False))
    assert [speed.name for speed in speeds] == [*LOADERS, "dali, shards"]
    for speed in speeds:
        assert len(speed.seconds) == 2 and not speed.why_not and speed.start > 0
        assert speed.difference == 0  # raw pixels: equal to the bit
    printed = capsys.readouterr().out
    images = int(printed.split()[0])  # whole shards
    assert 300 <= images < 500
    best = recommend(speeds, images)
    assert f"Fastest here: {best.name} ({best.flags})" in printed
    assert f"{images} images an epoch, 16x16 raw" in printed


def test_a_missing_library_is_named_with_its_install_line(
    digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [*(name for name in sys.modules if name.split(".")[0] == "ffcv"), "ffcv"]:
        monkeypatch.setitem(sys.modules, name, None)
    speeds = bench_loaders(BenchConfig(data=digits, images=100, turns=1, workers=1, device="cpu"))
    (missing,) = [speed for speed in speeds if speed.why_not]
    assert missing.name == "ffcv" and "pip install ffcv==1.0.2" in missing.why_not
    assert "pip install ffcv==1.0.2" in capsys.readouterr().out


def test_the_resident_loader_wins_where_it_is_nearly_as_fast() -> None:
    resident, ffcv = Speed("resident", "", seconds=(1.05,)), Speed("ffcv", "", seconds=(1.0,))
    assert recommend([resident, ffcv, Speed("dali", "", why_not="x")], 10) is resident
    assert recommend([Speed("resident", "", seconds=(1.2,)), ffcv], 10) is ffcv
    shards = Speed("dali, shards", "--engine.loader dali --order shards", seconds=(0.1,))
    assert recommend([ffcv, shards], 10) is ffcv  # another order is another run


def test_bad_requests(tmp_path: Path, digits: Path) -> None:
    assert main(["bench", "loaders", "--data", str(tmp_path)]) == 2
    assert main(["bench", "kernels", "--data", str(digits)]) == 2
    assert main(["bench"]) == 2
    with pytest.raises(UserError, match="--turns is 0"):
        BenchConfig(data=digits, turns=0)
