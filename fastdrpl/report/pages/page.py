"""A page from its parts: one file that needs nothing from outside."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from fastdrpl import __version__
from fastdrpl.errors import DataError
from fastdrpl.report.pages.changes_part import changes_part
from fastdrpl.report.pages.class_parts import classes_table, mixed_up
from fastdrpl.report.pages.detail_parts import (
    losses_part,
    problems_part,
    run_part,
    stages_table,
    training_part,
)
from fastdrpl.report.pages.markup import Markup, element
from fastdrpl.report.pages.opening_parts import figures, headline, top
from fastdrpl.report.pages.suspects_part import fit_suspects, suspects_part
from fastdrpl.report.problems import ImageFacts
from fastdrpl.report.run_page import RunPage
from fastdrpl.report.thumbnails import SMALL, picture_of

_SAID = 512  # bytes: what is said about suspects that have no room, or no pictures


@dataclass(frozen=True)
class Section:
    """A part of a page: its id, what it is called in the list of parts and at its head, its content."""

    identifier: str
    short: str
    title: str
    content: Markup


def render_run(page: RunPage, *, most_bytes: int) -> bytes:
    """The page of one run, at most so large where the suspects can be fewer."""
    rest = _with_suspects(page, 0)
    return rest if page.judged is None else _with_suspects(page, most_bytes - len(rest) - _SAID)


def _with_suspects(page: RunPage, budget: int) -> bytes:
    names = page.provenance.class_names
    sections: list[Section] = [Section("figures", "Figures", "Key figures", figures(page))]
    if page.changes is not None or page.without_changes:
        changed = changes_part(page.changes, page.without_changes)
        sections.append(Section("changes", "Changes", "What the corrected labels changed", changed))
    if page.judged is not None:
        shown = fit_suspects(page, page.judged, budget)
        sections.append(Section("suspects", "Suspects", "Suspects", suspects_part(page, page.judged, shown)))
        sections.append(
            Section("classes", "Classes", "Doubtful labels by class", classes_table(page.judged, names))
        )
        if page.judged.facts.suspects:
            sections.append(
                Section("pairs", "Pairs", "Which classes are mixed up", mixed_up(page.judged, names))
            )
    problems = problems_part(page.problems, page.without_data, _pictures(page))
    sections += [
        Section("losses", "Losses", "Losses, and what was fitted to them", losses_part(page.losses)),
        Section("training", "Training", "Training", training_part(page.history)),
        Section("stages", "Stages", "Stages", stages_table(page.stages)),
        Section("data", "Images", "Unreadable and repeated images", problems),
        Section("run", "Configuration", "Configuration", run_part(page.provenance)),
    ]
    return document(headline(page), top(page), sections)


def document(title: str, header: Markup, sections: Sequence[Section]) -> bytes:
    """A whole file, with a policy that lets it load nothing and run its own script alone."""
    script, style = _text("page.js"), _text("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"fastdrpl: {title}"),
        element("style", Markup(style)),
    )
    links = [element("a", section.short, href=f"#{section.identifier}") for section in sections]
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        header,
        element("nav", *links, aria_label="parts of this page"),
        element("main", *(_section(section) for section in sections), id="content"),
        element(
            "footer",
            f"fastdrpl {__version__}. This file needs nothing from outside and sends nothing anywhere.",
        ),
        element("script", Markup(script)),
    )
    return ("<!doctype html>\n" + element("html", head, body, lang="en")).encode()


def _section(section: Section) -> Markup:
    titled = f"{section.identifier}-title"
    heading = element("h2", section.title, id=titled)
    return element("section", heading, section.content, id=section.identifier, aria_labelledby=titled)


def _text(name: str) -> str:
    return (files("fastdrpl.report.pages") / name).read_text(encoding="utf-8")


def _pictures(page: RunPage) -> dict[ImageFacts, Markup]:
    """Of the images that repeat. Those that could not be read have none."""
    pictures: dict[ImageFacts, Markup] = {}
    if page.data is None:
        return pictures
    for image in (image for problem in page.problems for images in problem.first for image in images):
        split = page.data.splits.get(image.split)
        if split is not None and 0 <= image.row < len(split) and split.valid[image.row]:
            small = max(split.height, split.width) <= SMALL
            try:
                uri = picture_of(split, image.row)
            except DataError:  # it is named all the same
                continue
            pictures[image] = element("img", src=uri, alt="", class_="thumb small" if small else "thumb")
    return pictures
