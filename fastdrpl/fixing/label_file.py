"""What `fastdrpl fix` writes about labels: the corrected ones for the next training, and the log of what changed."""

import io

import numpy as np
import pyarrow
import pyarrow.csv

from fastdrpl.fixing.decisions import BY, DROP, UNDECIDED, Decisions, corrected, word
from fastdrpl.fixing.judged import Judged
from fastdrpl.fixing.origin import Origin
from fastdrpl.labels import encode_csv


def label_file(run: Judged, decisions: Decisions, origin: Origin) -> bytes:
    """A label file in the form of `Labels.save`, with the run it comes from at its head, and names for people."""
    labels = corrected(run, decisions)
    names = np.array(run.class_names, dtype=object)
    more = {"file": run.files[decisions.kept].tolist(), "given_name": names[labels.given].tolist()}
    return encode_csv(labels, comments=[origin.line()], more=more)


def change_log(run: Judged, decisions: Decisions, new_files: dict[int, str] | None = None) -> bytes:
    """A line for each decided sample, the most doubtful first; `index` is that of the run that was judged.

    `to` is empty where the sample is dropped. `new_files`: sample index -> where its image is in a corrected folder.
    """
    decided = np.flatnonzero(decisions.decision != UNDECIDED)
    decided = decided[np.argsort(run.rank[decided], kind="stable")]
    names = np.array(run.class_names, dtype=object)
    dropped = decisions.decision[decided] == DROP
    columns = {
        "index": pyarrow.array(decided),
        "row": pyarrow.array(run.labels.source_row[decided]),
        "file": pyarrow.array(run.files[decided].tolist(), pyarrow.string()),
        "from": pyarrow.array(names[run.labels.given[decided]].tolist(), pyarrow.string()),
        "to": pyarrow.array(names[decisions.label[decided]].tolist(), pyarrow.string(), mask=dropped),
        "decision": pyarrow.array([word(k) for k in decisions.decision[decided]], pyarrow.string()),
        "by": pyarrow.array([BY[k] for k in decisions.by[decided]], pyarrow.string()),
        "rank": pyarrow.array(run.rank[decided]),
        "score": pyarrow.array(run.score[decided]),
        "p_noisy": pyarrow.array(run.p_noisy[decided]),
        "p_suggested": pyarrow.array(run.p_suggested[decided]),
    }
    if new_files is not None:
        places = [new_files.get(index) for index in decided.tolist()]
        columns["new_file"] = pyarrow.array(places, pyarrow.string())
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pyarrow.table(columns), buffer)
    return buffer.getvalue()
