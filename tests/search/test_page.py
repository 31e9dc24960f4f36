"""The page in real headless Chromium: query, player at the moment, filter, export, errors, keyboard, axe."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import odd_video
import pytest
import use_world

pytest.importorskip("playwright")
pytest.importorskip("fastapi")
from playwright.sync_api import sync_playwright
from running_server import Running

from internvideo.search.collection import Collection

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
HOSTILE = '<img src=x onerror="document.title=1">.mp4'


class Server:
    """A server that can be stopped and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.start()

    def start(self) -> None:
        self.collection = Collection.open(self.folder / "c", use_world.language())
        self.running = Running(self.collection, self.port)
        self.port, self.address = self.running.port, self.running.address + "/"

    def stop(self) -> None:
        self.running.stop()
        self.collection.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short clips, one with a hostile name, a long one, and one that no browser plays (MPEG-4 part 2 in AVI)."""
    place = tmp_path_factory.mktemp("page")
    clips = Path(shutil.copytree(use_world.clips(), place / "clips"))
    shutil.copy(clips / "0.mp4", clips / HOSTILE)
    odd_video.encode(clips / "long.mp4", odd_video.moving_frames(15 * 16, seed=9), fps=15)
    odd_video.encode(clips / "old.avi", odd_video.moving_frames(60, seed=8), codec="mpeg4", fps=15)
    with Collection.create(place / "c", use_world.language()) as collection:
        collection.add([clips])
        actions = [
            {"start": 2.0, "end": 4.0, "label": "waving", "score": 0.9},
            {"start": 11.0, "end": 14.5, "label": "sitting down", "score": 0.4},
        ]
        row = {"path": str(clips / "long.mp4"), "duration": 16.0, "actions": actions}
        (place / "actions.jsonl").write_text(json.dumps(row))
        collection.annotate(place / "actions.jsonl")
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    started = Server(folder)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must not report an error that a test does not ask for."""
    # Playwright's waiting evaluates texts, which the page's policy forbids: the last test tests that policy.
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True, bypass_csp=True)
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []


def ask(page: Any, text: str) -> None:
    page.fill("#q", text)
    page.press("#q", "Enter")
    told = "document.querySelector('#status').textContent"
    page.wait_for_function(f"{told} && !/Searching/.test({told})")


def answer(page: Any, parameters: str) -> Any:
    """What the API says, asked from the page."""
    return page.evaluate("(p) => fetch('/api/search?' + p).then((r) => r.json())", parameters)


def test_a_query_gives_moments_and_the_address_keeps_it(page: Any, server: Server) -> None:
    page.goto(server.address)
    page.select_option("#threshold", "", force=True)
    ask(page, "a red circle falls")
    assert 6 <= page.locator(".moment").count() <= 12
    assert "q=a+red+circle+falls" in page.url
    names = page.locator(".name").all_inner_texts()
    page.reload()
    page.wait_for_selector(".moment")
    assert page.locator(".name").all_inner_texts() == names
    page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    alts = page.eval_on_selector_all(".strip img", "all => all.map((image) => image.alt)")
    assert any(re.search(r"\.(mp4|avi) at 0:", alt) for alt in alts)
    ask(page, "something else")
    page.go_back()
    page.wait_for_function("document.querySelector('#q').value === 'a red circle falls'")


def test_the_player_opens_at_the_moment(page: Any, server: Server) -> None:
    page.goto(f"{server.address}?q=x&where=name+%3D+%22long.mp4%22+and+start+%3E+9&top=1")
    card = page.locator(".moment").first
    start = answer(page, "q=x&top=1&where=name+%3D+%22long.mp4%22+and+start+%3E+9")["moments"][0]["start"]
    card.click()
    page.wait_for_function("document.querySelector('#video').readyState >= 2")
    assert start > 5
    assert page.evaluate("document.querySelector('#video').currentTime") == pytest.approx(start, abs=2.5)
    assert "#t=" in page.evaluate("document.querySelector('#video').currentSrc")
    page.keyboard.press("Escape")
    assert not page.locator("#player").is_visible()


def test_actions_show_beside_results_and_play(page: Any, server: Server) -> None:
    page.goto(f"{server.address}?q=x&threshold=&top=3&where=action+~+%22sit%22")
    page.wait_for_selector(".moment")
    assert set(page.locator(".name").all_inner_texts()) == {"long.mp4"}
    card = page.locator(".moment").first
    assert "sitting down" in card.locator(".actions").inner_text()
    assert card.locator(".rail i").count() >= 1
    card.click()
    page.wait_for_selector("#timelines button")
    assert page.locator("#timelines li").all_inner_texts() == ["waving", "sitting down"]
    page.get_by_role("button", name="Play waving, 0:02.0 – 0:04.0, score 0.90").click()
    page.wait_for_function("document.querySelector('#video').readyState >= 2")
    assert page.evaluate("document.querySelector('#video').currentTime") == pytest.approx(2.0, abs=1.9)
    assert page.inner_text("#title").endswith("0:02.0 – 0:04.0")


def test_what_a_browser_cannot_play_has_a_preview(page: Any, server: Server) -> None:
    page.goto(f"{server.address}?q=x&where=name+%3D+%22old.avi%22&top=1")
    page.locator(".moment").first.click()
    page.wait_for_function(
        "/preview/.test(document.querySelector('#video').currentSrc) && document.querySelector('#video').readyState > 1"
    )
    assert "cannot play this file" in page.inner_text("#hint")
    assert page.evaluate("document.querySelector('#video').videoWidth") > 0


def test_filters_and_mistakes(page: Any, server: Server) -> None:
    page.goto(server.address)
    page.click("summary")
    page.fill("#where", 'name = "2.mp4"')
    page.select_option("#threshold", "")
    ask(page, "a dog")
    assert set(page.locator(".name").all_inner_texts()) == {"2.mp4"}
    page.fill("#where", "huh > 3")
    ask(page, "a dog")
    assert "'huh'; expected: one of the columns" in page.inner_text("#status")
    assert page.locator(".moment").count() == 0
    page.fill("#where", "duration > 99")
    ask(page, "a dog")
    assert "no window passes the filter" in page.inner_text("#status")


def test_nothing_fits_offers_the_nearest(page: Any, server: Server) -> None:
    page.goto(f"{server.address}?q=a+dog&threshold=0.2%25")
    page.wait_for_selector(".moment")
    told = page.inner_text("#status")
    fits = answer(page, "q=a+dog&threshold=0.2%25")["moments"]
    assert told.startswith("Nothing fits") == (not fits)


def test_lists_and_clips_are_saved(page: Any, server: Server, tmp_path: Path) -> None:
    page.goto(f"{server.address}?q=a+dog&top=3")
    page.wait_for_selector(".moment")
    for kind in ("csv", "json", "edl"):
        with page.expect_download() as download:
            page.click(f"#{kind}")
        assert download.value.suggested_filename == f"moments.{kind}"
    page.locator(".moment").first.click()
    with page.expect_download() as download:
        page.click("#clip")
    download.value.save_as(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").stat().st_size > 500


def test_a_picture_is_dropped_and_more_like_this(page: Any, server: Server, folder: Path, tmp_path: Path) -> None:
    page.goto(server.address)
    page.set_input_files("#file", str(folder / "clips" / "3.mp4"))
    page.wait_for_selector(".moment")
    assert page.locator(".name").first.inner_text() == "3.mp4"
    assert "Looking for moments like 3.mp4" in page.inner_text("#example")
    page.locator(".moment").first.click()
    page.click("#similar")
    page.wait_for_function("location.search.includes('like=')")
    page.wait_for_selector(".moment")
    assert page.locator(".name").first.inner_text() == "3.mp4"
    page.click("#example button")
    page.wait_for_function("!document.querySelectorAll('.moment').length")


def test_the_keyboard_is_enough(page: Any, server: Server) -> None:
    page.goto(f"{server.address}?q=a+dog&threshold=")
    page.wait_for_selector(".moment")
    page.locator("body").click(position={"x": 2, "y": 500})
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[...document.querySelectorAll('.moment')].indexOf(document.activeElement)") == 1
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#player').open")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "moment", "the focus is back where it was"


def test_two_tabs_and_a_server_that_restarts(browser: Any, server: Server) -> None:
    context = browser.new_context(bypass_csp=True)
    one, two = context.new_page(), context.new_page()
    for tab, text in ((one, "a dog"), (two, "a red circle")):
        tab.goto(server.address)
        ask(tab, text)
    assert one.input_value("#q") == "a dog"
    server.stop()
    ask(one, "a cat")
    assert "server does not answer" in one.inner_text("#status")
    server.start()
    one.click("button[type=submit]")
    one.wait_for_selector(".moment")
    ask(two, "a cat")
    assert two.locator(".moment").count() > 0
    context.close()


def test_names_of_others_are_shown_and_not_parsed(browser: Any, server: Server) -> None:
    page = browser.new_page()
    page.goto(f"{server.address}?q=x&threshold=&where=name+~+%22onerror%22")
    page.wait_for_selector(".moment")
    assert page.locator(".name").first.inner_text() == HOSTILE
    assert page.title() == "internvideo search"
    page.close()


def test_axe_finds_no_serious_fault(page: Any, server: Server) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.goto(f"{server.address}?q=a+dog&threshold=&where=duration+%3E+9")
    page.wait_for_selector(".moment")
    for state in ("results", "player"):
        if state == "player":
            page.locator(".moment").first.click()
            page.wait_for_selector("#timelines button")
        for width in (1280, 380):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off"
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                faults = axe.run(page).response["violations"]
                told = [(fault["impact"], fault["id"], fault["nodes"][0]["html"]) for fault in faults]
                serious = [fault for fault in told if fault[0] in ("serious", "critical")]
                assert serious == [], (state, width, scheme)


def test_the_policy_forbids_scripts_of_others(browser: Any, server: Server) -> None:
    page = browser.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.goto(f"{server.address}?q=a+dog&threshold=")
    page.wait_for_selector(".moment")
    assert told == [], "the page itself keeps to it"
    script = "Object.assign(document.createElement('script'), {textContent: 'document.title = 1'})"
    page.evaluate(f"document.body.append({script})")
    page.wait_for_timeout(300)
    assert page.title() == "internvideo search"
    assert any("Content Security Policy" in text for text in told)
    page.close()
