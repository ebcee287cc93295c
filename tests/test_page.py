"""The page in a real browser: keys move the picture, receipts come back, and what goes wrong is said."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_world import FakeWorld, Place, serving

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
KEEP_SOCKET = """window.WebSocket = class extends WebSocket {
  constructor(url) { super(url); window.socket = this; }
};"""
COLOURS = """name => {
  const canvas = document.getElementById(name);
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0;
  for (let i = 0; i < data.length; i += 997) sum = (sum * 31 + data[i]) % 1000000007;
  return sum;
}"""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with serving(FakeWorld(chunk_s=0.01), slots=1, sessions_each=2, rest_s=0.6) as found:
        yield found


@pytest.fixture
def page(browser, place) -> Iterator:
    """The page, open and free of script errors to the end."""
    errors: list[str] = []
    found = browser.new_page(viewport={"width": 1200, "height": 800})
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("console", lambda message: errors.extend([message.text] if message.type == "error" else []))
    found.add_init_script(KEEP_SOCKET)
    found.goto(place)
    found.get_by_role("button", name="Walk", exact=True).wait_for()
    yield found
    found.close()
    scheduler = place.server.scheduler
    for session in list(scheduler.sessions.values()):
        scheduler.finish(session, "deleted", "the test is over")
    assert not errors


def until(question: Callable[[], bool]) -> None:
    """Asks until the answer is yes. (Playwright's own wait_for_function needs eval, which the page forbids.)"""
    end = time.monotonic() + 15
    while not question():
        assert time.monotonic() < end, "it did not come true within 15 s"
        time.sleep(0.03)


def number(page, name: str) -> float:
    """The number that an element shows, 0 while it shows none."""
    return float((page.inner_text(f"#{name}").split() or ["0"])[0].replace("–", "0"))


def walk(page) -> None:
    page.get_by_role("button", name="Walk", exact=True).click()
    page.wait_for_selector("body[data-state=live]")


def session_of(place: Place):
    return next(iter(place.server.scheduler.sessions.values()))


def test_holding_w_moves_the_picture_and_draws_the_track(page):
    walk(page)
    before, track = page.evaluate(COLOURS, "picture"), page.evaluate(COLOURS, "map")
    page.keyboard.down("w")
    until(lambda: number(page, "distance") > 8)
    assert page.inner_text("#doing") == "forward"
    assert page.evaluate(COLOURS, "picture") != before
    assert page.evaluate(COLOURS, "map") != track


def test_a_key_lights_when_the_picture_shows_it_and_latency_is_measured(page):
    walk(page)
    page.keyboard.down("d")
    page.wait_for_selector("button[aria-label='right, key D'].shown")
    assert 0 < float(page.inner_text("#latency")) < 2000
    page.keyboard.up("d")
    page.wait_for_selector("button[aria-label='right, key D']:not(.shown)")
    until(lambda: number(page, "fps") > 5)


def test_a_walking_key_steps_inside(page):
    page.keyboard.down("ArrowLeft")
    page.wait_for_selector("button[aria-label='turn left, key ←'].shown")


def test_the_slider_changes_the_speed_of_the_held_key(page, place):
    walk(page)
    page.keyboard.down("w")
    page.locator("#speed").fill("2")
    assert page.inner_text("#speed-shown") == "2.0×"
    until(lambda: session_of(place).held[1][0] == 2.0)


def test_an_unknown_message_is_said_and_the_walk_goes_on(page):
    walk(page)
    page.evaluate("socket.send(JSON.stringify({type: 'jump'}))")
    page.get_by_role("alert").filter(has_text="The message type 'jump' is unknown; allowed are hello").wait_for()
    page.keyboard.down("w")
    page.wait_for_selector("button[aria-label='forward, key W'].shown")


def test_motions_that_the_world_was_not_trained_on_are_grey(page):
    assert page.get_by_role("button", name="look up, key ↑").is_disabled()
    assert page.get_by_role("button", name="forward, key W").is_enabled()


def test_a_full_world_is_said_and_entered_when_a_place_is_free(page, browser, place):
    walk(page)
    late = browser.new_page()
    late.goto(place)
    late.get_by_role("button", name="Walk", exact=True).click()
    late.get_by_role("heading", name="The world is full").wait_for()
    assert "All 1 places are taken" in late.inner_text("#card p")
    page.close()
    until(lambda: not place.server.scheduler.sessions)  # a page that closes gives its place back
    late.get_by_role("button", name="Try now").click()
    late.wait_for_selector("body[data-state=live]")
    late.close()


def test_a_lost_connection_comes_back_by_itself(page, place):
    walk(page)
    page.evaluate("socket.close()")
    page.get_by_role("heading", name="The connection was lost").wait_for()
    page.wait_for_selector("body[data-state=live]")
    assert len(place.server.scheduler.sessions) == 1


def test_a_world_without_keys_rests(page):
    walk(page)
    page.get_by_text("at rest").first.wait_for()


def test_a_start_image_a_prompt_and_a_seed_reach_the_world(page, place):
    page.locator("#seed").fill("7")
    page.locator("#prompt").fill("a hall of glass")
    page.locator("#examples button").nth(1).wait_for()
    page.get_by_role("button", name="Start again").click()
    page.wait_for_selector("body[data-state=live]")
    assert (session_of(place).asked.caption, session_of(place).asked.seed) == ("a hall of glass", 7)


def test_choosing_another_start_begins_a_new_walk(page, place):
    walk(page)
    page.keyboard.down("w")
    until(lambda: number(page, "distance") > 8)
    page.keyboard.up("w")
    page.locator("#examples button").nth(2).click()
    until(lambda: [s.asked.caption for s in place.server.scheduler.sessions.values()] == ["wall 2"])
    assert number(page, "distance") == 0
    page.keyboard.down("d")
    page.wait_for_selector("button[aria-label='right, key D'].shown")


def test_touch_buttons_walk_on_a_phone(browser, place):
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).new_page()
    phone.goto(place)
    phone.get_by_role("button", name="Walk", exact=True).tap()
    phone.wait_for_selector("body[data-state=live]")
    key = phone.get_by_role("button", name="forward, key W")
    key.dispatch_event("pointerdown", {"pointerId": 1})
    phone.wait_for_selector("button[aria-label='forward, key W'].shown")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.context.close()


def test_help_opens_by_its_key_and_lists_what_can_be_done(page):
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    assert "turn left" in page.inner_text("#help-keys")
