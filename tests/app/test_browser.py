"""The dashboard in a browser: what streams, what survives a re-run, memory, keyboards, accessibility, screenshots."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version
from small_run import new_run

pytest.importorskip("streamlit")
pytest.importorskip("playwright")
pytest.importorskip("axe_playwright_python")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from llmfast.app.views import PAGES
from llmfast.training.loop import fit

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.xdist_group("app"),
    pytest.mark.skipif(
        Version(importlib.metadata.version("streamlit")) < Version("1.67"),
        reason="earlier versions of Streamlit, among them the newest for Python 3.10, lack landmarks and names",
    ),
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs Chromium; there is none on the path (Debian's package: chromium)"
    ),
]
NAMES = ["", *(page.name for page in PAGES[1:])]  # the first page is at the root
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
PROGRAM = "import sys; from llmfast.cli import main; sys.exit(main(sys.argv[1:]))"
SECONDS = 120_000


class Dashboard:
    """``llmfast app`` in a process."""

    def __init__(self, folder):
        command = [sys.executable, "-c", PROGRAM, "app", str(folder), "--port", "0", "--no_browser"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        printed = iter(self.process.stdout.readline, "")
        self.url = next(found[0] for line in printed if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))

    def memory(self):
        """MiB in use."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def close(self):
        self.process.terminate()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as running:
        # Chromium's own sandbox needs rights that a container does not have; it opens our pages alone.
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def dashboard(full, browser):
    found = Dashboard(full)
    yield found
    found.close()


@pytest.fixture
def tab(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    yield page
    context.close()


def visit(page, url, name=""):
    """Open a page, and wait until all of it is drawn."""
    page.goto(f"{url}/{name}")
    settle(page)


def settle(page):
    page.locator("h1").wait_for()
    page.locator("[data-test-script-state=notRunning]").wait_for(state="attached")
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")


def go(page, title):
    """By the menu, within one session."""
    page.get_by_role("link", name=title).click()
    page.get_by_role("heading", name=title, level=1).wait_for()


def violations(page):
    found = Axe().run(page).response["violations"]
    return [(each["id"], node["html"][:200]) for each in found for node in each["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_its_window(dashboard, browser, scheme):
    """Traps: pale text, skipped heading levels, inputs without names, a page wider than a telephone."""
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    found = {}
    for name in NAMES:
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            if width == 1280:
                visit(page, dashboard.url, name)
            settle(page)
            assert page.locator("[data-testid=stException]").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found[name, width] = violations(page)
    context.close()
    assert found == {each: [] for each in found}


def generate(page, prompt, tokens=400):
    """Ask the model that chats to continue a prompt, by the likeliest tokens: its random weights go on and on."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_label("Most tokens").fill(str(tokens))
    page.get_by_role("button", name="Generate").click()


def reply(page):
    return page.locator(".tokens span").all_inner_texts()


def finished(page):
    """The tokens once all of them are there."""
    page.get_by_text("point at one").wait_for()
    settle(page)
    return reply(page)


def test_generating_streams_and_a_re_run_loses_nothing(dashboard, tab):
    """Traps: the text appears at its end; a re-run, or a look at another page, ends or restarts the reply."""
    visit(tab, dashboard.url, "generate")
    generate(tab, "fox")
    tab.get_by_text("tokens so far").wait_for()
    counts = {tab.locator(".tokens span").count()}
    while not tab.get_by_text("point at one").is_visible():
        counts.add(tab.locator(".tokens span").count())
        tab.wait_for_timeout(20)
    whole = finished(tab)
    assert len({count for count in counts if 0 < count < len(whole)}) > 1
    assert violations(tab) == []
    tab.locator(".tokens span").nth(3).hover()
    note = tab.locator(".tokens span").nth(3).evaluate("each => getComputedStyle(each, '::after').content")
    assert re.search(r"\d\.\d%; likeliest: ", note)

    generate(tab, "fox")
    tab.get_by_text("tokens so far").wait_for()
    tab.locator("h1").click()
    tab.keyboard.press("r")  # runs the page again
    go(tab, "Tokenizer")
    go(tab, "Generate")
    assert finished(tab) == whole


COUNT_RUNS = """() => {
    const app = document.querySelector("[data-test-script-state]");
    window.runs = 0;
    const count = () => { window.runs += app.dataset.testScriptState === "notRunning"; };
    new MutationObserver(count).observe(app, {attributes: true, attributeFilter: ["data-test-script-state"]});
}"""


def test_twenty_re_runs_leave_memory_flat(dashboard, tab):
    """Trap: each run of a page loads a model, or keeps what it drew."""
    visit(tab, dashboard.url, "generate")
    generate(tab, "fox", tokens=20)
    whole = finished(tab)
    servers = children(dashboard)

    tab.evaluate(COUNT_RUNS)
    tab.locator("h1").click()

    def run_again(times):
        for _ in range(times):
            done = tab.evaluate("window.runs")
            tab.keyboard.press("r")
            tab.wait_for_function("done => window.runs > done", arg=done)

    run_again(5)
    before = dashboard.memory()
    run_again(20)
    assert dashboard.memory() - before < 16  # MiB; the model alone has 49
    assert children(dashboard) == servers
    assert reply(tab) == whole


def children(dashboard):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(dashboard.process.pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


def test_the_keyboard_alone_is_enough(dashboard, tab):
    visit(tab, dashboard.url, "generate")
    tab.get_by_label("Prompt").focus()
    for _ in range(40):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.innerText") == "Generate":
            break
    tab.keyboard.press("Enter")
    assert finished(tab)


def test_classifying_shows_probabilities(dashboard, tab):
    visit(tab, dashboard.url, "classify")
    tab.get_by_label("Text").fill("I love my phone")
    tab.get_by_role("button", name="Classify").click()
    bars = tab.locator("[data-testid=stProgress]")
    bars.first.wait_for()
    settle(tab)
    shown = [each.split() for each in bars.all_inner_texts()]
    assert {label for label, _ in shown} == {"good", "bad"}
    assert sum(float(probability.rstrip("%")) for _, probability in shown) == pytest.approx(100, abs=0.2)
    assert violations(tab) == []


def test_a_bad_prompt_is_a_sentence_and_the_page_stays_up(dashboard, tab):
    visit(tab, dashboard.url, "generate")
    generate(tab, "fox " * 400)
    tab.get_by_role("alert").get_by_text("context").first.wait_for()
    assert violations(tab) == []
    generate(tab, "fox", tokens=5)
    assert finished(tab)


def test_screenshots(request, tmp_path_factory, browser):
    """Writes the pictures of the guide and of the README."""
    if not request.config.getoption("--screenshots"):
        pytest.skip("writes docs/images/app-*.png with --screenshots")
    folder = tmp_path_factory.mktemp("shown")
    for name, rate in (("low-rate", 2e-3), ("high-rate", 1e-2)):
        fit(new_run(folder / name, steps=300, learning_rate=rate, evaluate_every=25, sample_every=0))
    dashboard = Dashboard(folder)
    try:
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            page = context.new_page()
            page.set_default_timeout(SECONDS)
            visit(page, dashboard.url)
            page.wait_for_timeout(1000)
            page.screenshot(path=IMAGES / f"app-runs-{scheme}.png")
            context.close()
    finally:
        dashboard.close()
    for file in IMAGES.glob("app-*.png"):
        assert file.stat().st_size < 300_000
