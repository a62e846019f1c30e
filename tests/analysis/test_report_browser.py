"""The report in a real browser, Debian's chromium: no error, no request; filter and search work on hostile texts."""

import shutil

import pytest
from made_up_runs import answer, whole_run

from gainRAG.analysis.contents import collect
from gainRAG.analysis.page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = (
    "<script>window.hacked = 1</script><img src=https://example.org/x onerror='window.hacked = 1'></script>"
    "<!--<script>\u202e\u2067\u05d0\u05d1 {{ 7 * 7 }} ${window.hacked = 1}\u2028\x00\"'"
)
LONG = 100_000  # characters


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """The page of a run in which every text is hostile, and one passage long."""
    work = tmp_path_factory.mktemp("run")
    whole_run(work, count=60, text=HOSTILE * 2)
    whole_run(work, "B_test", count=4, text=HOSTILE + "x" * LONG)
    answer(work, "C_test", {"standard_rag": ["Rome"]}, model=HOSTILE)
    (work / "report.html").write_text(render(collect(work, 1000)), "utf-8")
    return (work / "report.html").as_uri()


@pytest.fixture
def page(browser, address):
    """The page, opened; afterwards nothing may have gone wrong, or been asked for, or run."""
    page, troubles = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: troubles.append(f"request: {request.url:.200}"))
    page.goto(address)
    yield page
    assert page.evaluate("window.hacked") is None
    page.close()
    asked = [f"request: {address}"]
    assert [trouble for trouble in troubles if not trouble.startswith("request: data:")] == asked


def count(page) -> str:
    return page.locator("#count").inner_text()


def test_filter_search_and_pages_work(page):
    assert count(page) == "65 of 65 questions"
    assert page.locator("#list > li").count() == 25
    page.locator("#after").click()
    assert page.locator("#page").inner_text() == "26 to 50 of 65"
    for name, wanted in (("helped", 20 + 2), ("hurt", 8), ("pseudo", 15 + 1)):
        page.locator("#filter").select_option(name)
        assert count(page) == f"{wanted} of 65 questions", name
    page.locator("#set").select_option(label="B_test")
    assert count(page) == "1 of 65 questions"
    page.locator("#filter").select_option("all")
    page.locator("#set").select_option("")
    page.locator("#search").fill("number 41?")
    assert count(page) == "1 of 65 questions"
    page.locator("#search").fill("<SCRIPT> number 41?")
    assert count(page) == "1 of 65 questions"
    page.locator("#search").fill("nothing has this")
    assert count(page) == "0 of 65 questions" and not page.locator("#list > li").count()


def test_a_question_opens_with_its_candidates_gains_and_scores(page):
    page.locator("#set").select_option(label="B_test")
    page.locator("#search").fill("number 1?")
    page.locator("#list summary").click()
    rows = page.locator("#list .inside tbody tr")
    rows.first.wait_for()  # the browser tells of the opening a moment later
    assert rows.count() == 4
    first = rows.first.locator("td").all_inner_texts()
    assert (first[0], *first[2:]) == ("rank 1", "-0.69", "1.00", "Standard RAG")
    assert f"{LONG + len(HOSTILE) + len('x1 0 '):,} characters in all" in first[1]
    assert "<script>window.hacked" in first[1]
    assert len(first[1]) < 2000


def test_a_narrow_window_needs_no_scrolling_sideways(page):
    page.set_viewport_size({"width": 360, "height": 700})
    page.locator("#list summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for width in page.locator("figure img").evaluate_all("all => all.map((one) => one.getBoundingClientRect().width)"):
        assert 200 < width <= 360


def test_it_prints(page):
    assert page.pdf(format="A4")[:4] == b"%PDF"


def test_the_policy_stops_what_is_not_ours(browser, address):
    page, stopped = browser.new_page(), []
    page.on("requestfailed", lambda request: stopped.append((request.url, request.failure)))
    page.goto(address)
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.hacked = 1";
          const image = document.createElement("img");
          image.src = "http://127.0.0.1:9/x.png";
          document.body.append(script, image);
        }"""
    )
    page.wait_for_function("document.querySelector('body > img').complete")
    assert page.evaluate("window.hacked") is None
    assert stopped == [("http://127.0.0.1:9/x.png", "csp")]
    page.close()
