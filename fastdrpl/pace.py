"""How a run gets on: progress bar, progress.json for `fastdrpl status`, and when it is time to save."""

import time
from types import TracebackType

from fastdrpl.files import write_json
from fastdrpl.folder import RunFolder
from fastdrpl.loaders.progress import Progress
from fastdrpl.machine import Machine
from fastdrpl.signals import StopRequest

CONTINUE, SAVE, STOP = 0, 1, 2
_AGREE_EVERY = 16  # steps between two exchanges over ranks: each costs a synchronisation
_FILE_EVERY = 2.0  # seconds


class Pace:
    """One stage's progress on one rank. Entered while the stage trains."""

    def __init__(
        self,
        folder: RunFolder,
        machine: Machine,
        stop: StopRequest,
        *,
        stage: str,
        epochs: int,
        save_every: float,
    ):
        self._folder, self._machine, self._stop, self._stage = folder, machine, stop, stage
        self._epochs, self._save_every = epochs, save_every
        self._saved = self._written = self._started = time.monotonic()
        self._images = 0
        self._bar: Progress | None = None

    def begin(self, epoch: int, images: int, done: int) -> None:
        """Count an epoch of `images`, of which `done` are behind it already (a run that goes on)."""
        self._total, self._epoch_done, self._epoch = images * self._epochs, done, epoch
        self._behind = images * (epoch - 1) + done
        if self._machine.main and self._bar is None:
            self._bar = Progress(self._stage, self._total, unit="images", start=self._behind)
            self._bar.__enter__()

    def advance(self, images: int) -> None:
        """Some images were trained on."""
        self._images += images
        self._behind += images
        if not self._machine.main:
            return
        if self._bar is not None:
            self._bar.advance(images)
        if time.monotonic() - self._written > _FILE_EVERY:
            self.write()

    def note(self, text: str) -> None:
        """A changing remark behind the bar."""
        if self._bar is not None:
            self._bar.note(text)

    @property
    def images_per_second(self) -> float:
        """Images trained on in this process, over all that the stage did meanwhile."""
        return self._images / max(1e-9, time.monotonic() - self._started)

    def write(self) -> None:
        """progress.json, for readers outside."""
        self._written = time.monotonic()
        speed = self.images_per_second
        write_json(
            self._folder.progress,
            {
                "stage": self._stage,
                "epoch": self._epoch,
                "epochs": self._epochs,
                "images_per_second": round(speed, 1),
                "stage_seconds_left": round((self._total - self._behind) / speed, 1) if speed else None,
                "time": time.time(),
            },
        )

    def wish(self, step: int) -> int:
        """CONTINUE, SAVE or STOP: the same on every rank, which must all call it after the same steps."""
        if self._machine.world > 1 and step % _AGREE_EVERY:
            return CONTINUE
        own = CONTINUE
        if self._stop.name is not None:
            own = STOP
        elif time.monotonic() - self._saved >= self._save_every:
            own = SAVE
        return self._machine.highest(own)

    def saved(self) -> None:
        """A checkpoint was written now."""
        self._saved = time.monotonic()

    def __enter__(self) -> "Pace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)
