"""The report in a real browser: filters, keys, decisions that stay, fixes.csv, narrow windows, hostile names."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from browser import emulate, errors_of, open_browser
from report_cases import CLASSES, SCRIPT, finish_run, prepare_hostile

from fastdrpl.cli import main
from fastdrpl.labels import load_labels
from fastdrpl.report.command import ReportCommand, report_runs
from fastdrpl.report.facts import read_facts


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("report")
    run = finish_run(place / "run", prepare_hostile(place))
    report_runs(ReportCommand(runs=(run,)))
    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(run, browser):
    """The page, freshly opened, without decisions."""
    emulate(browser, 1280, 900)
    browser.get((run / "report.html").as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    errors_of(browser)
    return browser


def cards(page) -> list[int]:
    """The sample indices of the cards, in order."""
    return page.execute_script(
        "return [...document.querySelectorAll('.card')].map(c => Number(c.dataset.index))"
    )


def press(page, text: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(text).perform()


def choose(page, identifier: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(page.find_element("id", identifier)).select_by_value(value)


def click(page, identifier: str) -> None:
    page.find_element("id", identifier).click()


def decided(page) -> dict[int, str]:
    return {
        int(index): decision
        for index, decision in page.execute_script(
            "return [...document.querySelectorAll('.card[data-decision]')]"
            ".map(c => [c.dataset.index, c.dataset.decision])"
        )
    }


def download(page, place: Path) -> str:
    """What `Download fixes.csv` gives."""
    page.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(place)})
    click(page, "download")
    deadline = time.monotonic() + 30
    while not (place / "fixes.csv").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return (place / "fixes.csv").read_bytes().decode()


def test_three_fixes_by_keys_stay_and_download(page, run, tmp_path):
    facts = read_facts(run, suspects=10_000)
    wanted = [each for each in facts.most_doubtful if each.given == CLASSES[1]]
    choose(page, "by-class", str(CLASSES.index(CLASSES[1])))
    listed = cards(page)
    assert [
        each.index for each in facts.most_doubtful if CLASSES[1] in (each.given, each.suggested)
    ] == listed
    pair = f"{CLASSES.index(wanted[0].given)} {CLASSES.index(wanted[0].suggested)}"
    choose(page, "by-class", "")
    choose(page, "by-pair", pair)
    assert cards(page) == [each.index for each in wanted]
    page.find_element("tag name", "h2").click()  # away from the control, whose letters choose options
    press(page, "aaa")
    assert decided(page) == {each.index: "accept" for each in wanted[:3]}
    press(page, "k")
    press(page, "d")
    press(page, "u")  # takes the drop back

    page.refresh()
    choose(page, "by-state", "decided")
    assert decided(page) == {each.index: "accept" for each in wanted[:3]} | {wanted[3].index: "keep"}
    assert "4 of 26 decided: 3 accepted, 1 kept" in page.find_element("id", "progress").text
    text = download(page, tmp_path)
    first, _, rest = text.partition("\n")
    assert first == f"# fastdrpl fixes for run {facts.hash}"
    rows = list(csv.DictReader(rest.splitlines(keepends=True)))
    expected = [
        {
            "index": str(each.index),
            "file": each.file,
            "given": each.given,
            "decision": "accept" if each in wanted[:3] else "keep",
            "label": each.suggested if each in wanted[:3] else each.given,
        }
        for each in sorted(wanted[:4], key=lambda each: each.index)
    ]
    assert rows == expected
    corrected = tmp_path / "labels.csv"
    assert main(["fix", str(run), "--fixes", str(tmp_path / "fixes.csv"), "--out", str(corrected)]) == 0
    before, after = load_labels(run / "noise.npz"), load_labels(corrected)
    assert {int(k) for k in np.flatnonzero(before.given != after.given)} == {
        each.index for each in wanted[:3]
    }
    assert errors_of(page) == []


def test_drop_another_class_skip_and_the_mouse(page, run, tmp_path):
    first = read_facts(run, suspects=4).most_doubtful
    press(page, "sd")  # the first is skipped, the second dropped
    other = next(name for name in CLASSES if name not in (first[2].given, first[2].suggested))
    press(page, "o")
    from selenium.webdriver.common.keys import Keys

    press(page, other[:3] + Keys.ENTER)
    accept = page.find_element("css selector", f".card[data-index='{first[3].index}'] [data-action=accept]")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", accept)
    accept.click()
    assert decided(page) == {first[1].index: "drop", first[2].index: "relabel", first[3].index: "accept"}
    rows = csv.DictReader(download(page, tmp_path).splitlines(keepends=True)[1:])
    found = {int(row["index"]): (row["decision"], row["label"]) for row in rows}
    assert found == {
        first[1].index: ("drop", ""),
        first[2].index: ("relabel", other),
        first[3].index: ("accept", first[3].suggested),
    }
    assert errors_of(page) == []


def test_decisions_of_another_page_of_the_run_are_kept(page, run):
    """Of one with room for more suspects, and of one whose run, the same trained again, suggested other classes."""
    facts = read_facts(run, suspects=2)
    first, second = facts.most_doubtful
    number = {name: k for k, name in enumerate(CLASSES)}
    other = next(k for name, k in number.items() if name not in (first.given, first.suggested))
    stored = [
        [first.index, {"decision": "accept", "label": other}],
        [second.index, {"decision": "accept", "label": number[second.suggested]}],
        [123_456, {"decision": "drop", "label": None}],
    ]
    page.execute_script(
        "localStorage.setItem(arguments[0], arguments[1])", f"fastdrpl fixes {facts.hash}", json.dumps(stored)
    )
    page.refresh()
    assert decided(page) == {first.index: "relabel", second.index: "accept"}
    press(page, "k")
    kept = page.execute_script("return localStorage.getItem(arguments[0])", f"fastdrpl fixes {facts.hash}")
    assert [123_456, stored[2][1]] in json.loads(kept)
    assert errors_of(page) == []


def test_names_are_text_and_nothing_is_fetched(page):
    page.get_log("performance")  # what came before
    page.refresh()
    text = page.find_element("tag name", "body").text
    assert SCRIPT in text and "line\\nbreak" in text and "猫" in text
    assert page.execute_script("return document.scripts.length") == 2  # the data and the script of the page
    requests = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    fetched = {r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"}
    assert {url.partition(":")[0] for url in fetched} <= {"file", "data", "blob"}


def test_a_script_that_comes_in_does_not_run(page):
    page.execute_script(
        "const s = document.createElement('div'); s.innerHTML = '<img src=x onerror=\"window.hit = 1\">';"
        "document.body.append(s)"
    )
    time.sleep(0.2)
    assert page.execute_script("return window.hit") is None
    errors_of(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(page, theme):
    emulate(page, 390, 844, theme)
    page.refresh()
    assert page.execute_script("return document.documentElement.scrollWidth") == 390
    ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in ground[4:-1].split(",")) / 3
    assert brightness < 60 if theme == "dark" else brightness > 200
    assert errors_of(page) == []


def test_pictures_are_the_images_and_small_ones_keep_their_pixels(page, run):
    """8 x 8 pixels, grey or not, come out as they were stored."""
    from fastdrpl.loaders.dataset import open_dataset
    from fastdrpl.loaders.decode import decode_row, map_file
    from fastdrpl.report.table import read_table

    seen = page.execute_script(
        "const image = document.querySelector('.card img'), canvas = document.createElement('canvas');"
        "canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;"
        "const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
        "return [canvas.width, canvas.height, getComputedStyle(image).imageRendering,"
        " [...context.getImageData(0, 0, canvas.width, canvas.height).data]]"
    )
    split = open_dataset(run.parent / "data").split("train")
    row = read_table(run / "labels.parquet")["row"][
        read_facts(run, suspects=1).most_doubtful[0].index
    ].as_py()
    pixels = decode_row(split, map_file(split), row)
    assert seen[:3] == [8, 8, "pixelated"]
    assert [value for k, value in enumerate(seen[3]) if k % 4 < 3] == pixels.ravel().tolist()
