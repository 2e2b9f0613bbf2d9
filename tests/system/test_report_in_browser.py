"""The report in a real Chromium: it draws, answers to its controls, and asks the network for nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from paribus.studies.report import write_report
from tests.unit.studies.example_study import HOSTILE, example_study, example_tasks

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
INK = """canvas => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(pixels.buffer)).size;
}"""
"""How many colours a canvas holds; a blank one has a single one."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(example_study(), path)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that nothing else uses."""
    path = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    assert path, "Chromium is not installed; name it in the variable CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address) as page:
        yield page


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """The open report; whatever it says to the console or asks from elsewhere fails the test at its end."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: complaints.append(request.url) if is_foreign(request.url, address) else None)
    page.goto(address)
    yield page
    page.close()
    assert complaints == []


def is_foreign(url: str, address: str) -> bool:
    """Pictures are in the page itself."""
    return url != address and not url.startswith("data:image/png;base64,")


def picture(page: Page, chart: str) -> str:
    return page.eval_on_selector(f"#{chart} canvas", "canvas => canvas.toDataURL()")


def test_tables_and_charts_are_there(page: Page) -> None:
    assert page.locator("table").count() == 8
    assert page.locator("#verdict table >> nth=0").locator("tbody tr").count() == 8
    assert page.locator("#verdict table >> nth=0").locator("tbody tr >> nth=0").inner_text().startswith("attention")
    assert page.locator("#verdict .arm", has_text=HOSTILE).first.is_visible()
    for chart in (
        "curves-chart-0",
        "stability-chart-0-0",
        "stability-chart-0-1",
        "stability-chart-0-2",
        "tuning-chart-0-0",
    ):
        assert page.eval_on_selector(f"#{chart} canvas", INK) > 20


def test_controls_change_the_curves(page: Page) -> None:
    pictures, norms = [picture(page, "curves-chart-0")], picture(page, "stability-chart-0-0")
    for control in ("[value=flops]", "[value=seconds]", "[name=log]", "[name=start]"):
        page.check(f".controls {control}", force=True)
        pictures.append(picture(page, "curves-chart-0"))
    page.click("#curves .key >> text=gla")
    pictures.append(picture(page, "curves-chart-0"))
    assert len(set(pictures)) == 6
    assert page.locator(".key[aria-pressed=false]").count() == 3, "the arm is off in all charts"
    assert picture(page, "stability-chart-0-0") != norms
    page.evaluate("document.querySelectorAll('#curves .key[aria-pressed=true]').forEach(key => key.click())")
    for chart in ("curves-chart-0", "stability-chart-0-0", "stability-chart-0-1"):
        assert page.eval_on_selector(f"#{chart} canvas", INK) > 1, "axes stay when no arm is left"


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.focus(".controls [value=tokens]")
    before = picture(page, "curves-chart-0")
    page.keyboard.press("ArrowRight")
    assert page.is_checked(".controls [value=flops]")
    assert picture(page, "curves-chart-0") != before
    value = page.locator("#curves .key output >> nth=1")
    end = value.inner_text()
    page.focus("#curves-chart-0")
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    assert float(value.inner_text()) > float(end)


def test_dark_scheme(page: Page) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light, drawn = page.evaluate(background), picture(page, "curves-chart-0")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
    redrawn = "before => document.querySelector('#curves-chart-0 canvas').toDataURL() !== before"
    page.wait_for_function(redrawn, arg=drawn)
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(background) == light, "paper is white"


def test_each_task_has_charts_of_its_own(browser: Browser, tmp_path: Path) -> None:
    write_report(example_tasks(), tmp_path / "report.html")
    with opened(browser, (tmp_path / "report.html").as_uri()) as page:
        for panel in (0, 1):
            for chart in (f"curves-chart-{panel}", f"stability-chart-{panel}-0", f"tuning-chart-{panel}-0"):
                assert page.eval_on_selector(f"#{chart} canvas", INK) > 20
        text, images = picture(page, "curves-chart-0"), picture(page, "curves-chart-1")
        page.click("#curves .key >> text=gla+digits")
        assert picture(page, "curves-chart-0") == text, "the other task keeps its lines"
        assert picture(page, "curves-chart-1") != images
        value = page.locator("#curves [data-panel='1'] .key output >> nth=0")
        end = value.inner_text()
        page.focus("#curves-chart-1")
        for _ in range(8):
            page.keyboard.press("ArrowLeft")
        assert float(value.inner_text()) > float(end)
        cells = page.locator("#verdict table >> nth=0").locator("tbody td")
        assert [("better" in cell, "diverged" in cell) for cell in cells.all_inner_texts()] == [
            (False, False), (False, False), (True, False), (False, True)
        ]  # fmt: skip
        widths = "pictures => pictures.map(picture => picture.naturalWidth)"
        assert page.eval_on_selector_all("#samples img", widths) == [6, 6], "the policy lets them in"


def test_a_phone_scrolls_tables_and_not_the_page(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.querySelector('#curves-chart-0 canvas').getBoundingClientRect().width < 390")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.eval_on_selector(".scroll", "box => box.scrollWidth > box.clientWidth")


def test_without_scripts_all_numbers_are_there(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    text = page.inner_text("main")
    for part in (
        "2.1087",
        "−0.0430",
        "no difference shown",
        "byte 5-gram",
        "all final numbers are in the tables",
    ):
        assert part in text
    assert not page.locator(".controls").is_visible()
    context.close()


def test_the_browser_would_refuse_a_script_of_another(browser: Browser, address: str, tmp_path: Path) -> None:
    """The page's own policy stops what slipped through escaping."""
    html = Path(address.removeprefix("file://")).read_text(encoding="utf-8")
    hostile = tmp_path / "hostile.html"
    hostile.write_text(html.replace("<footer>", "<script>document.title = 'owned'</script><footer>"))
    page = browser.new_page()
    page.goto(hostile.as_uri())
    assert page.title().startswith("0000_example")
    page.close()
