"""The built book in a real browser: every page as on a desktop and as on a phone, with no network but the loopback."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag
from urllib.request import urlopen

import pytest

from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium here: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra [test]")

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
# As root in a container, and without what chromium asks of the network by itself.
OPTIONS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
LOOK = """async () => {
  await window.MathJax?.startup?.promise;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
  return {
    links: [...document.querySelectorAll("a[href]")].map((link) => link.href),
    ids: [...document.querySelectorAll("[id]")].map((element) => element.id),
    pictures: [...document.images].map((image) => [image.src, image.naturalWidth, image.alt.trim()]),
  };
}"""
VERDICTS = ("agrees", "disagrees", "equivalent", "undecided", "did not train", "not run")
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(built_book) -> Iterator[str]:
    """Where the book is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=built_book))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield started
        started.close()


@dataclass
class Visit:
    """What was seen of a page.

    Attributes:
        pictures: (address, width in pixels, alternative text).
        too_wide: By how many pixels it is wider than the window, on a desktop and on a phone.
        errors: What the page, or the browser about it, wrote to the console.
        requests: Addresses of all that was asked for.
    """

    links: list[str]
    ids: list[str]
    pictures: list[tuple[str, int, str]]
    too_wide: list[int]
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def visits(browser, address, built_book) -> dict[str, Visit]:
    """Address of every page -> what was seen there."""
    errors: list[str] = []
    requests: list[str] = []
    context = browser.new_context(viewport=DESKTOP)
    context.on("request", lambda request: requests.append(request.url))
    page = context.new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    found = {}
    for path in sorted(built_book.rglob("*.html")):
        if path.relative_to(built_book).parts[0] == "_static":
            continue
        url = address + path.relative_to(built_book).as_posix()
        page.set_viewport_size(DESKTOP)
        page.goto(url)
        seen = page.evaluate(LOOK)
        too_wide = [page.evaluate(TOO_WIDE)]
        page.set_viewport_size(PHONE)
        too_wide.append(page.evaluate(TOO_WIDE))
        found[url] = Visit(**seen, too_wide=too_wide, errors=[*errors], requests=[*requests])
        errors.clear()
        requests.clear()
    context.close()
    return found


@pytest.fixture
def page(browser) -> Iterator[Any]:
    """A fresh window, on a desktop."""
    context = browser.new_context(viewport=DESKTOP, permissions=["clipboard-read", "clipboard-write"])
    yield context.new_page()
    context.close()


def test_every_page_was_seen(visits):
    assert len(visits) > 30


def test_every_link_within_the_book_leads_somewhere(visits, address):
    wanted = {urldefrag(link) for visit in visits.values() for link in visit.links if link.startswith(address)}
    assert len(wanted) > 100
    for url in sorted({url for url, _ in wanted}):
        with urlopen(url) as answer:  # raises for anything but success
            assert answer.status == 200, url
    lost = [(url, anchor) for url, anchor in wanted if anchor and url in visits and anchor not in visits[url].ids]
    assert lost == []


def test_every_picture_is_there_and_has_an_alternative_text(visits):
    pictures = [(url, *picture) for url, visit in visits.items() for picture in visit.pictures]
    assert len(pictures) > 20
    assert [picture for picture in pictures if not picture[2] or not picture[3]] == []


def test_no_page_complains(visits):
    assert {url: visit.errors for url, visit in visits.items() if visit.errors} == {}


def test_nothing_is_fetched_from_elsewhere(visits, address):
    requests = [request for visit in visits.values() for request in visit.requests]
    assert len(requests) > len(visits)
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def test_no_page_is_wider_than_a_desktop_or_a_phone(visits):
    assert {url: visit.too_wide for url, visit in visits.items() if max(visit.too_wide) > 0} == {}


@pytest.mark.parametrize("width", [1400, 390])
def test_every_verdict_is_within_the_window(page, address, built_book, width):
    """Without scrolling sideways; the table may be wider than a phone, its first two columns are not."""
    page.set_viewport_size({"width": width, "height": 900})
    seen = 0
    for path in sorted((built_book / "results").glob("*/*.html")):
        if "wraps" not in path.read_text(encoding="utf-8"):
            continue
        page.goto(address + path.relative_to(built_book).as_posix())
        for cell in page.locator("table.frepro.wraps tbody tr td:nth-child(2)").all():
            box, holder = cell.bounding_box(), cell.locator("xpath=ancestor::div[1]").bounding_box()
            right = min(width, holder["x"] + holder["width"])
            assert 0 <= box["x"] < box["x"] + box["width"] <= right + 1, (path.name, cell.inner_text(), box, right)
            assert cell.inner_text().rstrip("*") in VERDICTS
            seen += 1
    assert seen > 10


def test_formulas_are_set(page, address):
    page.goto(f"{address}dfformer/index.html")
    page.locator("mjx-container").first.wait_for()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_table_sorts_by_click_and_by_keyboard(page, address, size):
    page.set_viewport_size(size)
    page.goto(f"{address}results/dfformer/table_4.html")
    table = page.locator("table.frepro").first
    upper = table.locator("thead tr").first.inner_text()
    head = table.locator("thead tr").last.locator("th").nth(2)
    table.locator("tbody tr").nth(1).locator("td").nth(1).evaluate("cell => { cell.textContent = 'not run' }")

    def column() -> list[str]:
        return table.locator("tbody tr").evaluate_all("rows => rows.map(row => row.cells[2].textContent)")

    before = column()
    *numbers, last = sorted(before, key=lambda text: float("inf") if text == "not run" else float(text.strip("*")))
    assert len(set(numbers)) > 2
    assert before != [*numbers, last]
    head.get_by_role("button").click()
    assert (column(), head.get_attribute("aria-sort")) == ([*numbers, last], "ascending")
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [text.strip("*") for text in column()] == [*[text.strip("*") for text in reversed(numbers)], "not run"]
    other = table.locator("thead tr").last.locator("th").first
    other.get_by_role("button").focus()
    page.keyboard.press("Space")
    names = table.locator("tbody tr").evaluate_all("rows => rows.map(row => row.cells[0].textContent)")
    assert names[0].startswith("DF →")
    assert (other.get_attribute("aria-sort"), head.get_attribute("aria-sort")) == ("ascending", None)
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    assert (column(), other.get_attribute("aria-sort")) == (before, None)
    assert table.locator("thead tr").first.inner_text() == upper


@pytest.mark.parametrize(
    ("values", "rising"),
    [
        (["9.5", "not run", "10.25*", "-3", ""], ["-3", "9.5", "10.25*", "not run", ""]),
        (["+0.4 points", "−1.2 points", "0.1 points"], ["−1.2 points", "0.1 points", "+0.4 points"]),
        (["2.10 (1.9–2.3)", "no model", "0.85 ± 0.1"], ["0.85 ± 0.1", "2.10 (1.9–2.3)", "no model"]),
        (["3-12-9-3", "3-3-9-3", "undecided"], ["3-3-9-3", "3-12-9-3", "undecided"]),
    ],
)
def test_numbers_sort_as_numbers_and_what_is_missing_last(page, address, values, rising):
    page.goto(f"{address}results/dfformer/table_4.html")
    order = page.evaluate(
        """(values) => {
          const table = document.createElement("table");
          const heads = "<tr><th colspan=2></th></tr><tr><th>name</th><th>value</th></tr>";
          table.innerHTML = `<thead>${heads}</thead><tbody></tbody>`;
          for (const value of values) table.tBodies[0].insertRow().append(...["name", value].map((text) => {
            const cell = document.createElement("td");
            cell.textContent = text;
            return cell;
          }));
          makeSortable(table);
          const click = () => {
            table.tHead.rows[1].cells[1].querySelector("button").click();
            return [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
          };
          return [click(), click(), click()];
        }""",
        values,
    )
    has_value = [value for value in rising if value not in ("not run", "no model", "")]
    assert order == [rising, [*reversed(has_value), *rising[len(has_value) :]], values]


def test_the_search_finds_a_page(page, address):
    page.goto(f"{address}search.html?q=spectral+pooling")
    page.locator("#search-results li a[href*='spanet/index.html']").first.wait_for()


def test_a_table_can_be_downloaded(page, address):
    page.goto(f"{address}results/dfformer/table_4.html")
    link = page.get_by_role("link", name="dfformer_table_4_findings.csv")
    with page.expect_download() as download:
        link.click()
    committed = ROOT / "results" / "demo" / "dfformer" / "table_4" / "findings.csv"
    assert Path(download.value.path()).read_bytes() == committed.read_bytes()


def test_code_can_be_copied(page, address):
    page.goto(f"{address}index.html")
    block = page.locator("div.highlight").filter(has_text="import frepro, timm").first
    block.hover()
    block.locator("button.copybtn").click()
    page.wait_for_function("navigator.clipboard.readText().then((text) => text.includes('import frepro'))")


def test_the_book_can_be_dark(page, address):
    page.emulate_media(color_scheme="dark")
    page.goto(f"{address}results/status.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    assert max(red, green, blue) < 80
