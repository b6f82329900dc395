"""A page on which several runs stand beside each other."""

from collections.abc import Callable, Sequence

from fastdrpl.report.agreement import AgreementFacts
from fastdrpl.report.history import EpochFacts
from fastdrpl.report.pages.axes import short
from fastdrpl.report.pages.changes_part import changes_part
from fastdrpl.report.pages.charts import Line, draw_lines, legend
from fastdrpl.report.pages.detail_parts import figure, losses_part, stages_table
from fastdrpl.report.pages.markup import Markup, element, join, name_of
from fastdrpl.report.pages.opening_parts import figures_of, headline
from fastdrpl.report.pages.page import Section, document
from fastdrpl.report.run_page import RunPage
from fastdrpl.report.words import percent

COLOURS = 6


def render_runs(pages: Sequence[RunPage], agreement: Sequence[AgreementFacts]) -> bytes:
    """The page of two runs or more."""
    names = names_of(pages)
    title = f"{len(pages)} runs side by side"
    verdicts = [
        element("li", _swatch(n), element("b", name_of(names[n])), ": ", headline(page))
        for n, page in enumerate(pages)
    ]
    header = element(
        "header",
        element("p", "fastdrpl report"),
        element("h1", title),
        element("ul", *verdicts, class_="verdicts"),
        class_="top",
    )
    sections = [
        Section("figures", "Figures", "Key figures", _figures(pages, names)),
        Section("suspects", "Suspects", "Do they doubt the same labels?", _agreement(agreement, names)),
        *(
            Section(
                f"changes-{n}",
                "Changes",
                f"What corrected labels changed for {names[n]}",
                changes_part(page.changes, ""),
            )
            for n, page in enumerate(pages)
            if page.changes is not None
        ),
        Section("training", "Training", "Training", _training(pages, names)),
        Section("losses", "Losses", "Losses, and what was fitted to them", _each(pages, names, _losses)),
        Section("stages", "Stages", "Stages", _each(pages, names, _stages)),
        Section("run", "Configuration", "Where they differ", _settings(pages, names)),
    ]
    return document(title, header, sections)


def names_of(pages: Sequence[RunPage]) -> list[str]:
    """The folders' names; their paths where two have one name."""
    folders = [page.path.resolve().name for page in pages]
    return [
        name if folders.count(name) == 1 else str(page.path)
        for name, page in zip(folders, pages, strict=True)
    ]


def _swatch(number: int) -> Markup:
    return element("i", class_=f"swatch s{number % COLOURS}")


def _head(names: Sequence[str], first: str = "") -> Markup:
    cells = [element("th", _swatch(n), name_of(name), scope="col") for n, name in enumerate(names)]
    return element("thead", element("tr", element("td", first), *cells))


def _table(head: Markup, rows: Sequence[Markup], label: str) -> Markup:
    table = element("table", head, element("tbody", *rows), class_="wide")
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def _figures(pages: Sequence[RunPage], names: Sequence[str]) -> Markup:
    known = [{what: (much, note) for what, much, note in figures_of(page)} for page in pages]
    kinds = dict.fromkeys(what for figures in known for what in figures)
    rows = [
        element("tr", element("th", kind, scope="row"), *(_figure(figures.get(kind)) for figures in known))
        for kind in kinds
    ]
    made = [page.provenance for page in pages]
    methods = [page.judged.facts.method if page.judged else page.provenance.method for page in pages]
    about = [
        ("recipe", [each.recipe for each in made]),
        ("method", methods),
        ("seed", ["-" if each.seed is None else str(each.seed) for each in made]),
    ]
    rows += [
        element("tr", element("th", what, scope="row"), *(element("td", value) for value in said))
        for what, said in about
    ]
    return _table(_head(names), rows, "key figures of the runs")


def _figure(found: tuple[str, str] | None) -> Markup:
    if found is None:
        return element("td", "-")
    return element("td", element("b", found[0]), " ", element("span", found[1], class_="note"))


def _agreement(agreement: Sequence[AgreementFacts], names: Sequence[str]) -> Markup:
    if not agreement:
        return element("p", "No two of these runs are finished and over the same prepared images.")
    columns = (
        "runs",
        "images of both",
        "other label in the second",
        "doubted by both",
        "only by the first",
        "only by the second",
        "overlap",
        "doubted, then relabelled and no longer doubted",
    )
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in columns)))
    rows = [
        element(
            "tr",
            element("th", name_of(names[each.first]), " and ", name_of(names[each.second]), scope="row"),
            *(element("td", f"{n:,}") for n in (each.images, each.relabelled, each.both)),
            *(element("td", f"{n:,}") for n in (each.only_first, each.only_second)),
            element("td", percent(each.overlap, 1)),
            element("td", f"{each.gone:,}"),
        )
        for each in agreement
    ]
    note = "Doubts are compared over images that have the same label in both runs; overlap: both of either."
    return join(_table(head, rows, "agreement of the runs"), element("p", note, class_="note"))


def _training(pages: Sequence[RunPage], names: Sequence[str]) -> Markup:
    entries = [(name, f"s{n % COLOURS}") for n, name in enumerate(names)]

    def chart(
        title: str,
        value: Callable[[EpochFacts], float | None],
        write: Callable[[float], str] = short,
        *,
        logarithmic: bool = False,
    ) -> Markup | None:
        lines = [
            Line(name, class_, tuple((n, value(epoch)) for n, epoch in enumerate(page.history, 1)))
            for (name, class_), page in zip(entries, pages, strict=True)
            if page.history
        ]
        return figure(draw_lines(title, lines, write=write, logarithmic=logarithmic), title)

    return join(
        element(
            "div",
            chart("Test accuracy", lambda epoch: epoch.test_accuracy, lambda value: f"{value:.0%}"),
            chart("Training loss", lambda epoch: epoch.loss),
            chart("Learning rate (logarithmic)", lambda epoch: epoch.lr, logarithmic=True),
            class_="charts",
        ),
        legend(entries),
    )


def _each(pages: Sequence[RunPage], names: Sequence[str], part: Callable[[RunPage], Markup]) -> Markup:
    return join(
        *(
            join(element("h3", _swatch(n), name_of(name)), part(page))
            for n, (name, page) in enumerate(zip(names, pages, strict=True))
        )
    )


def _losses(page: RunPage) -> Markup:
    return losses_part(page.losses)


def _stages(page: RunPage) -> Markup:
    return stages_table(page.stages)


def _settings(pages: Sequence[RunPage], names: Sequence[str]) -> Markup:
    """Settings, versions and hashes that are not the same in all runs."""
    said = [page.provenance.settings for page in pages]
    differing = [
        key
        for key in dict.fromkeys(key for settings in said for key in settings)
        if len({settings.get(key) for settings in said}) > 1
    ]
    if not differing:
        return element("p", "Configuration, versions, data and labels are the same.")
    rows = [
        element(
            "tr",
            element("th", key, scope="row"),
            *(element("td", settings.get(key, "-")) for settings in said),
        )
        for key in differing
    ]
    again = [element("li", element("code", page.provenance.again)) for page in pages]
    return join(
        element("div", _table(_head(names), rows, "settings that differ"), class_="hashes"),
        element("p", "The same runs again:"),
        element("ul", *again),
    )
