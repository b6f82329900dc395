"""The end of a run for a human reader: what was trained, how well it does, which labels look wrong."""

from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fastdrpl.report.facts import RunFacts

_CLASSES = 5


def print_summary(facts: RunFacts) -> None:
    """Print to standard output: stages, verdict, classes with the most doubtful labels, the first suspects."""
    parts: list[Any] = [_stages(facts), _verdict(facts)]
    for stage in facts.stages:
        parts += [Text(f"{stage.name}: {warning}", style="yellow") for warning in stage.warnings]
    if facts.suspects:
        parts += [_per_class(facts), _first_suspects(facts)]
    parts.append(
        Text(f"labels.csv, labels.parquet, histograms and the network are in {facts.folder}", style="dim")
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
            _duration(stage.seconds),
            _percent(stage.best),
            _percent(stage.last),
            _count(stage.detection.get("labelled")),
            _count(stage.detection.get("unlabelled")),
            _fraction(stage.detection.get("auc"), 4),
            _fraction(stage.detection.get("tpr"), 3),
            _fraction(stage.detection.get("fpr"), 3),
        )
    return table


def _verdict(facts: RunFacts) -> Text:
    text = Text("\n")
    text.append(
        f"{facts.suspects:,} of {facts.samples:,} labels look wrong ({facts.suspects / facts.samples:.1%})",
        style="bold",
    )
    if facts.noise_rate is not None:
        text.append(f"; {facts.noise_rate:.1%} really are")
    if facts.last is not None and facts.best is not None:
        text.append(f". Test accuracy {facts.last:.2%} (last), {facts.best:.2%} (best).")
    if facts.epochs_scale != 1:
        text.append(
            f"\nEvery schedule was {facts.epochs_scale:g} times as long as the method's (--epochs_scale): a trial."
        )
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
        cells = [str(suspect.rank), str(suspect.index), Text(suspect.file or "-"), Text(suspect.given)]
        cells += [Text(suggested), f"{suspect.p_noisy:.3f}", Text(suspect.truth or "-")]
        table.add_row(*cells[: len(table.columns)])
    if all(suspect.suggested != suspect.given for suspect in facts.most_doubtful):
        return Group(table)
    note = (
        "= given: the network was not told this label after the detection, and came to it all the same;\n"
        "the label is probably right, and the image unusual."
    )
    return Group(table, Text(note, style="dim"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _fraction(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
