"""How prepare shows its progress, and the processes that it starts."""

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prepare_cases import KILLED, ROOT, find_children, is_running, make_photos

from fastdrpl.loaders import progress
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.prepare import describe
from fastdrpl.loaders.progress import Progress


def test_cifar_10_as_a_command_imports_little(real_cifar: Path, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from fastdrpl.loaders.prepare import PrepareConfig, prepare\n"
        f"source, out = Path({str(real_cifar)!r}), Path({str(tmp_path / 'out')!r})\n"
        "prepare(PrepareConfig(kind='cifar10', source=source, out=out))\n"
        "print(sorted({'torch', 'numba', 'sklearn', 'scipy', 'PIL', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "train: 50,000 of 50,000 images" in done.stderr
    dataset = open_dataset(tmp_path / "out", verify=True)
    assert (dataset.flip, dataset.pad, dataset.has("test")) == (True, 4, True)
    assert any("airplane, automobile, bird" in line for line in describe(dataset))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar_on_a_terminal() -> None:
    terminal = Terminal()
    with Progress("train", 1000, stream=terminal) as bar:
        bar.advance(500)
        bar.note("3 unreadable")
        bar.advance(500)
    assert "1000/1000" in terminal.getvalue() and "3 unreadable" in terminal.getvalue()


def test_workers_end_when_prepare_is_killed(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "photos", 400, size=160)
    script, out = tmp_path / "run.py", tmp_path / "out"
    script.write_text(KILLED.format(root=str(ROOT), source=str(source), out=str(out), store="raw", workers=2))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL) as process:
        children: set[int] = set()
        deadline = time.monotonic() + 60
        while len(children) < 3 and process.poll() is None and time.monotonic() < deadline:
            children |= find_children(process.pid)  # two workers and multiprocessing's resource tracker
        process.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if is_running(child)]


def test_progress_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 1000, unit="images", start=200) as bar:
        bar.advance(300)
        bar.note("3 unreadable")
        line = bar.line()
    assert line.startswith("train: 500 of 1,000 images (50 %), ") and line.endswith("left | 3 unreadable")
    assert capsys.readouterr().err.strip().startswith("train: 500 of 1,000 images")
    with Progress("scan", None, quiet=True) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


def test_the_last_progress_line_is_printed_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)  # every step is shown
    with Progress("train", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert [line.split(" images")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"train: {k} of 3" for k in (1, 2, 3)
    ]
    monkeypatch.undo()
    with Progress("train", 3) as bar:  # too quick for any other line
        bar.advance(3)
    with Progress("nothing", 0):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" images")[0] for line in lines] == ["train: 3 of 3", "nothing: 0 of 0"]
