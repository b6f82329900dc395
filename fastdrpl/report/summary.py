"""The end of a run for a human reader: what was trained, how well it does, which labels look wrong."""

from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fastdrpl.report.facts import RunFacts
from fastdrpl.report.words import count, duration, fraction, percent, trial_note, verdict

_CLASSES = 5


def print_summary(facts: RunFacts) -> None:
    """Print to standard output: stages, verdict, classes with the most doubtful labels, the first suspects."""
    parts: list[Any] = [_stages(facts), _verdict(facts)]
    for stage in facts.stages:
        parts += [Text(f"{stage.name}: {warning}", style="yellow") for warning in stage.warnings]
    if facts.suspects:
        parts += [_per_class(facts), _first_suspects(facts)]
    parts.append(
        Text(f"report.html, labels.csv, labels.parquet and the network are in {facts.folder}", style="dim")
    )
    Console(highlight=False).print(Panel(Group(*parts), title=f"fastdrpl · {facts.recipe} · {facts.method}"))


def _stages(facts: RunFacts) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("stage", "epochs", "time", "best", "last", "kept", "dropped", "AUC", "TPR", "FPR"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage in facts.stages:
        table.add_row(
            stage.name,
            str(stage.epochs),
            duration(stage.seconds),
            percent(stage.best),
            percent(stage.last),
            count(stage.detection.get("labelled")),
            count(stage.detection.get("unlabelled")),
            fraction(stage.detection.get("auc"), 4),
            fraction(stage.detection.get("tpr"), 3),
            fraction(stage.detection.get("fpr"), 3),
        )
    return table


def _verdict(facts: RunFacts) -> Text:
    text = Text("\n")
    text.append(verdict(facts), style="bold")
    if facts.last is not None and facts.best is not None:
        text.append(f". Test accuracy {facts.last:.2%} (last), {facts.best:.2%} (best).")
    note = trial_note(facts)
    if note is not None:
        text.append(f"\n{note}")
    text.append("\n")
    return text


def _per_class(facts: RunFacts) -> Table:
    table = Table(
        box=None,
        header_style="bold",
        pad_edge=False,
        title="Classes with the most doubtful labels",
        title_justify="left",
    )
    for name in ("class", "samples", "look wrong", ""):
        table.add_column(name, justify="left" if name in ("class", "") else "right")
    for each in facts.per_class[:_CLASSES]:
        share = each.suspects / each.samples
        bar = f"{'█' * round(20 * share)} {share:.0%}"
        table.add_row(Text(each.name), f"{each.samples:,}", f"{each.suspects:,}", bar)
    return table


def _first_suspects(facts: RunFacts) -> Group:
    table = Table(
        box=None, header_style="bold", pad_edge=False, title="\nMost doubtful labels", title_justify="left"
    )
    numbers = ("rank", "sample", "p(noisy)")
    columns = ["rank", "sample", "file", "given", "suggested", "p(noisy)"]
    with_truth = any(suspect.truth is not None for suspect in facts.most_doubtful)
    for name in [*columns, *(["truth"] if with_truth else [])]:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for suspect in facts.most_doubtful:
        suggested = "= given" if suspect.suggested == suspect.given else suspect.suggested
        cells: list[str | Text] = [str(suspect.rank), str(suspect.index)]
        cells += [
            Text(suspect.file or "-"),
            Text(suspect.given),
            Text(suggested),
            f"{suspect.p_noisy:.3f}",
            Text(suspect.truth or "-"),
        ]
        table.add_row(*cells[: len(table.columns)])
    if all(suspect.suggested != suspect.given for suspect in facts.most_doubtful):
        return Group(table)
    note = (
        "= given: the network was not told this label after the detection, and came to it all the same;\n"
        "the label is probably right, and the image unusual."
    )
    return Group(table, Text(note, style="dim"))
