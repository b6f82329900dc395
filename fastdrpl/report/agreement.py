"""Several runs beside each other: over the same images, which labels do they doubt?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdrpl.folder import RunFolder
from fastdrpl.labels import Labels, load_labels
from fastdrpl.report.run_page import RunPage


@dataclass(frozen=True)
class AgreementFacts:
    """Two runs over images that both were trained on, and whose labels they judge."""

    first: int  # numbers of the runs
    second: int
    images: int  # that both have
    relabelled: int  # of these, whose given label is another in the second run
    both: int  # doubted by both, of the images with one label in both
    only_first: int
    only_second: int
    gone: int  # doubted by the first, given another label in the second, and not doubted there

    @property
    def overlap(self) -> float | None:
        """Doubted by both, as a share of what either doubts (Jaccard)."""
        either = self.both + self.only_first + self.only_second
        return self.both / either if either else None


def compare_suspects(pages: Sequence[RunPage]) -> tuple[AgreementFacts, ...]:
    """Each pair of finished runs over the same prepared data. Raises `DataError` for damaged labels."""
    done = [n for n, page in enumerate(pages) if page.judged is not None]
    labels = {n: load_labels(RunFolder(pages[n].path).noise) for n in done}
    pairs = [(a, b) for k, a in enumerate(done) for b in done[k + 1 :]]
    return tuple(
        _compare(a, b, labels[a], labels[b], _suspects(pages[a]), _suspects(pages[b]))
        for a, b in pairs
        if pages[a].provenance.identity["data"] == pages[b].provenance.identity["data"]
        and labels[a].class_names == labels[b].class_names
    )


def _suspects(page: RunPage) -> npt.NDArray[np.int64]:
    return np.empty(0, np.int64) if page.judged is None else page.judged.suspects["index"].to_numpy()


def _compare(
    first: int,
    second: int,
    a: Labels,
    b: Labels,
    in_a: npt.NDArray[np.int64],
    in_b: npt.NDArray[np.int64],
) -> AgreementFacts:
    doubted_a, doubted_b = np.zeros(len(a), bool), np.zeros(len(b), bool)
    doubted_a[in_a] = doubted_b[in_b] = True
    _, at_a, at_b = np.intersect1d(a.source_row, b.source_row, return_indices=True)
    doubted_a, doubted_b = doubted_a[at_a], doubted_b[at_b]
    same = a.given[at_a] == b.given[at_b]
    return AgreementFacts(
        first=first,
        second=second,
        images=len(at_a),
        relabelled=int((~same).sum()),
        both=int((doubted_a & doubted_b & same).sum()),
        only_first=int((doubted_a & ~doubted_b & same).sum()),
        only_second=int((~doubted_a & doubted_b & same).sum()),
        gone=int((doubted_a & ~doubted_b & ~same).sum()),
    )
