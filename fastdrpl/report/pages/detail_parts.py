"""Further down a page: training, stages, problems of the data, configuration."""

from collections.abc import Sequence

from fastdrpl.report.facts import StageFacts
from fastdrpl.report.history import EpochFacts
from fastdrpl.report.losses import LossFacts
from fastdrpl.report.pages.charts import Line, draw_lines, draw_losses, legend, losses_legend
from fastdrpl.report.pages.markup import Markup, element, join, name_of
from fastdrpl.report.problems import ImageFacts, ProblemFacts
from fastdrpl.report.provenance import ProvenanceFacts
from fastdrpl.report.words import count, duration, fraction, percent


def figure(chart: Markup | None, title: str, names: Markup | None = None) -> Markup | None:
    """A chart with its title and legend; None where there is no chart."""
    if chart is None:
        return None
    return element("figure", element("figcaption", title), chart, names)


def losses_part(losses: Sequence[LossFacts]) -> Markup:
    """A chart per stage that has detected."""
    if not losses:
        return element("p", "No stage has left losses.")
    charts = [figure(draw_losses(facts), f"after {facts.stage}", losses_legend(facts)) for facts in losses]
    return element("div", *charts, class_="charts")


def training_part(history: Sequence[EpochFacts]) -> Markup:
    """Loss, accuracy and learning rate over the epochs of all stages."""
    if not history:
        return element("p", "No epoch has been trained.")
    first = [n for n, epoch in enumerate(history, 1) if n == 1 or epoch.stage != history[n - 2].stage]
    borders = [(n, history[n - 1].stage) for n in first]

    def line(name: str, class_: str, values: Sequence[float | None]) -> Line:
        """Broken where a stage begins: the next one minimises something else."""
        points: list[tuple[float, float | None]] = []
        for n, value in enumerate(values, 1):
            if n in first[1:]:
                points.append((n, None))
            points.append((n, value))
        return Line(name, class_, tuple(points))

    test = line("test accuracy", "s0", [epoch.test_accuracy for epoch in history])
    agreement = line("agreement with the targets", "s1", [epoch.agreement for epoch in history])
    loss = line("loss", "s2", [epoch.loss for epoch in history])
    rate = line("learning rate", "s3", [epoch.lr for epoch in history])
    shown = [each for each in (test, agreement) if any(y is not None for _, y in each.points)]
    return element(
        "div",
        figure(
            draw_lines("Accuracy", shown, borders=borders, write=lambda value: f"{value:.0%}"),
            "Accuracy",
            legend([(each.name, each.class_) for each in shown]),
        ),
        figure(draw_lines("Training loss", [loss], borders=borders), "Training loss"),
        figure(
            draw_lines("Learning rate", [rate], borders=borders, logarithmic=True),
            "Learning rate (logarithmic)",
        ),
        class_="charts",
    )


_STAGE_COLUMNS = ("stage", "epochs", "time", "best", "last", "kept", "dropped", "AUC", "TPR", "FPR")


def stages_table(stages: Sequence[StageFacts]) -> Markup:
    """A row per stage, and its warnings."""
    rows = [
        element("tr", element("th", name_of(stage.name), scope="row"), *_numbers(stage)) for stage in stages
    ]
    head = [
        element("th", name, scope="col", class_=None if n == 0 else "n")
        for n, name in enumerate(_STAGE_COLUMNS)
    ]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows), class_="wide")
    warnings = [
        element("li", element("b", f"{stage.name}: "), warning)
        for stage in stages
        for warning in stage.warnings
    ]
    return join(
        element("div", table, class_="scroll", tabindex=0, role="region", aria_label="table of stages"),
        element("ul", *warnings, class_="warnings") if warnings else None,
        element(
            "p",
            "best, last: test accuracy. TPR, FPR: share of the right and of the wrong labels that were kept. "
            "A dash: not known.",
            class_="note",
        ),
    )


def _numbers(stage: StageFacts) -> list[Markup]:
    found = stage.detection
    values = (
        count(stage.epochs),
        duration(stage.seconds),
        percent(stage.best),
        percent(stage.last),
        count(found.get("labelled")),
        count(found.get("unlabelled")),
        fraction(found.get("auc"), 4),
        fraction(found.get("tpr"), 3),
        fraction(found.get("fpr"), 3),
    )
    return [element("td", value, class_="n") for value in values]


# --- data ---


def problems_part(
    problems: Sequence[ProblemFacts], without_data: str, pictures: dict[ImageFacts, Markup]
) -> Markup:
    """What preparing the data found; `pictures` of those images that can be shown."""
    if without_data:
        return element("p", f"The prepared images were not looked at: {without_data}.")
    if not problems:
        return element("p", "Preparing the data found nothing of this kind.")
    return join(*(_problem(problem, pictures) for problem in problems))


def _problem(problem: ProblemFacts, pictures: dict[ImageFacts, Markup]) -> Markup:
    reasons = problem.reasons or ("",) * len(problem.first)
    items = [
        element("li", *(_image(image, pictures) for image in images), f" {reason}" if reason else None)
        for images, reason in zip(problem.first, reasons, strict=True)
    ]
    more = problem.count - len(items)
    return element(
        "details",
        element("summary", f"{problem.count:,} × {problem.title}"),
        element("ul", *items, class_="images") if items else None,
        element("p", f"and {more:,} more", class_="note") if items and more else None,
        open=len(items) > 0,
    )


def _image(image: ImageFacts, pictures: dict[ImageFacts, Markup]) -> Markup:
    return element(
        "span",
        pictures.get(image),
        name_of(image.name),
        f" ({image.split}, row {image.row:,})",
        class_="image",
    )


# --- configuration ---


def run_part(made: ProvenanceFacts) -> Markup:
    """The command, the configuration, machine, versions and hashes."""
    machine = {
        key: value for key, value in made.machine.items() if not isinstance(value, dict) and value is not None
    }
    changed = [
        element("li", f"{name}: {before!r}, then {now!r}")
        for change in made.changed
        for name, (before, now) in change.items()
    ]
    return join(
        element(
            "p",
            "The same run again, with the configuration in its folder (or with the text below in a file):",
        ),
        element("pre", element("code", made.again), class_="command", tabindex=0),
        element("p", "Changed on the way:") if changed else None,
        element("ul", *changed) if changed else None,
        element(
            "div",
            _values("Machine", machine),
            _values("Versions", made.versions),
            _values("Hashes (sha256)", made.identity),
            class_="facts",
        ),
        element("p", "Prepared data: ", name_of(made.data), class_="path") if made.data else None,
        element(
            "details",
            element("summary", "config.toml"),
            element("pre", element("code", made.config), tabindex=0),
        ),
    )


def _values(title: str, values: object) -> Markup | None:
    if not isinstance(values, dict) or not values:
        return None
    pairs = [join(element("dt", key), element("dd", value)) for key, value in values.items()]
    return element("div", element("h3", title), element("dl", *pairs), class_="values")
