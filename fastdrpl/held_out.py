"""The labels of the held-out images, judged by the final network of a run, which never saw them."""

import numpy as np

from fastdrpl.detect.probabilities import class_probabilities
from fastdrpl.errors import UserError
from fastdrpl.folder import RunFolder
from fastdrpl.labels import UNKNOWN, Labels
from fastdrpl.opening import open_run
from fastdrpl.report.table import Said, build_table, write_table


def judge_held_out(folder: RunFolder) -> tuple[int, int] | None:
    """Write held_out.parquet and held_out.csv of a finished run: -> how many labels look wrong, of how many.

    They have the columns of labels.parquet. A label looks wrong where the network suggests another class, and is the
    more doubtful the less it gives to this one: `p_noisy` is the rest. None, and no file, where the test labels count
    as right, or there are none. Raises UserError or DataError as `open_run` does.
    """
    run = open_run(folder.path, data=folder.prepared if folder.prepared.is_dir() else None)
    data = run.data
    if not data.has("test") or data.source.labels_checked:
        return None
    if data.class_names != tuple(run.description["class_names"]):
        raise UserError("the run has other classes than the held-out images", where=str(folder.path))
    split = data.split("test")
    rows = np.flatnonzero(split.valid)
    given = split.label[rows]
    labels = Labels(given, np.full(len(rows), UNKNOWN), rows, data.class_names)
    p = class_probabilities(folder.path, labels, split="test")
    suggested = p.argmax(1)
    said = Said(suggested, p.max(1), p[np.arange(len(rows)), given])
    doubt = 1 - said.p_given.astype(np.float64)
    table = build_table(labels, data.ids("test"), said, doubt, suggested == given, {})
    for path in folder.held_out:
        write_table(path, table)
    return int((suggested != given).sum()), len(rows)
