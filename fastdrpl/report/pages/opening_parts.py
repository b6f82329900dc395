"""The top of a page: the verdict and the key figures."""

from collections.abc import Sequence

from fastdrpl.report.pages.markup import Markup, element, join, name_of
from fastdrpl.report.run_page import Judged, RunPage
from fastdrpl.report.words import count, duration, percent, plural, trial_note, verdict


def headline(page: RunPage) -> str:
    """The verdict in one sentence."""
    if page.judged is not None:
        return f"{verdict(page.judged.facts)}."
    return f"This run is not finished: {page.standing}."


def after_headline(page: RunPage) -> list[str]:
    """What belongs right below it."""
    if page.judged is None:
        if not page.history:
            return ["Nothing has been trained yet."]
        last = page.history[-1]
        return [
            f"It has come to epoch {last.epoch} of the stage {last.stage}; below is what it has left so far."
        ]
    facts = page.judged.facts
    said = [_accuracy(facts.last, facts.best), _quality(page.judged), trial_note(facts)]
    return [sentence for sentence in said if sentence]


def _accuracy(last: float | None, best: float | None) -> str:
    if last is None or best is None:
        return "There is no test set, so that nothing is known of the accuracy."
    return f"Test accuracy {last:.2%} after the last epoch ({best:.2%} at best)."


def _quality(judged: Judged) -> str | None:
    quality = judged.quality
    if quality is None or quality.precision is None or quality.recall is None:
        return None
    return (
        f"The right labels are known here: {quality.precision:.1%} of the suspects are wrong, "
        f"and {quality.recall:.1%} of the wrong labels are among them."
    )


def figures_of(page: RunPage) -> list[tuple[str, str, str]]:
    """The key figures: what, how much, and a note."""
    made = page.provenance
    seconds = sum(stage.seconds for stage in page.stages)
    found = [
        ("training samples", count(made.samples), f"{len(made.class_names):,} classes"),
        (
            "training time",
            duration(seconds),
            f"{plural(len(page.stages), 'stage')}, {plural(len(page.history), 'epoch')}",
        ),
    ]
    if page.judged is None:
        return found
    facts, quality = page.judged.facts, page.judged.quality
    share = percent(facts.suspects / facts.samples, 1)
    found.insert(0, ("labels look wrong", count(facts.suspects), f"{share} of {facts.samples:,}"))
    best = "no test set" if facts.best is None else f"best {percent(facts.best)}"
    found.insert(1, ("test accuracy, last", percent(facts.last), best))
    if quality is not None:
        found += [
            ("suspects that are wrong", percent(quality.precision, 1), _first(quality.first)),
            (
                "wrong labels found",
                percent(quality.recall, 1),
                f"{percent(facts.noise_rate, 1)} of all are wrong",
            ),
            ("right suggestions", percent(quality.suggestion, 1), "of the suspects with a wrong label"),
        ]
    return found


def _first(first: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{share:.0%} of the first {k:,}" for k, share in first[:2])


def figures(page: RunPage) -> Markup:
    """The key figures as tiles."""
    tiles = [
        element("div", element("dt", what), element("dd", element("strong", much), element("span", note)))
        for what, much, note in figures_of(page)
    ]
    return element("dl", *tiles, class_="tiles")


def top(page: RunPage) -> Markup:
    """Header with the verdict."""
    made = page.provenance
    method = page.judged.facts.method if page.judged else made.method
    seed = "" if made.seed is None else f" · seed {made.seed}"
    return element(
        "header",
        element(
            "p",
            join(
                "fastdrpl report · ", name_of(page.path.resolve().name), f" · {made.recipe} · {method}{seed}"
            ),
        ),
        element("h1", headline(page)),
        element("p", " ".join(after_headline(page)), class_="lead"),
        class_="top",
    )
