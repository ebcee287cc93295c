"""The page in a real browser: keys move the picture, receipts come back, and what goes wrong is said."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from fake_world import FakeWorld, Place, serving, wall
from PIL import Image

from relic.geometry.actions import ACTIONS, STATIC
from relic.serve.access import Access

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
MANY_EXAMPLES = """() => {
  const examples = document.getElementById("examples");
  for (let i = 0; i < 33; i++) examples.append(examples.firstElementChild.cloneNode(true));
}"""
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
FIREFOX_TAKES_FRAMES = """() => {
  const take = CanvasCaptureMediaStreamTrack.prototype.requestFrame;
  delete CanvasCaptureMediaStreamTrack.prototype.requestFrame;
  MediaStream.prototype.requestFrame = function () { take.call(this.getVideoTracks()[0]); };
}"""
EASED = """async () => {
  const { Track } = await import("/web/map.js");
  return [6, 60].map((times) => {  // 300 ms in so many pictures
    const track = new Track(Object.assign(document.createElement("canvas"), { width: 300, height: 200 }));
    track.aim(0);
    track.trail = { places: [], here: { x: 90, z: 40 } };
    for (let i = 0; i < times; i++) track.aim(300 / times);
    return track.view.x;
  });
}"""
FOCUS = """() => {
  const element = document.activeElement;
  element.dataset.test ??= element === document.body ? "body" : element.id || Math.random().toString();
  const { outlineStyle, boxShadow } = getComputedStyle(element.id === "upload" ? element.nextElementSibling : element);
  return [element.dataset.test, outlineStyle !== "none" || boxShadow !== "none"];
}"""
CONTRAST = """() => {
  // every text and its contrast, where the glow or the picture behind it is white
  const numbers = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(rgb[i]), 0.05);
  const ground = (element) => {
    if (element.id === "stage") return Array(3).fill(document.getElementById("card").hidden ? 255 : 0.85 * 255);
    const own = numbers(getComputedStyle(element).backgroundColor);
    if (element === document.body) return over([255, 255, 255, 0.26], own);
    return over(own, ground(element.parentElement));
  };
  return [...document.querySelectorAll("body *")].filter((element) =>
    element.checkVisibility() && !element.closest(":disabled, dialog, .unseen, .skip")
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
  ).map((element) => {
    const below = ground(element);
    const [a, b] = [light(over(numbers(getComputedStyle(element).color), below)), light(below)];
    return [element.textContent.trim(), Math.round(100 * Math.max(a, b) / Math.min(a, b)) / 100];
  });
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
def place(tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    (folder / "secret").write_text("x" * 32)
    dials: dict[str, Any] = {"token_secret": str(folder / "secret"), "snapshots": str(folder / "snapshots")}
    dials |= {"slots": 2, "sessions_each": 3, "rest_s": 0.6, "rewind_every_s": 0.4, "creates_per_minute": 1000.0}
    with serving(FakeWorld(chunk_s=0.01), **dials) as found:
        found.secret = (folder / "secret").read_bytes()
        yield found


@contextlib.contextmanager
def visit(browser, place: Place, refused: bool = False, **context) -> Iterator:
    """The page, open and free of script errors to the end; the browser calls an answer above 400 an error, too."""
    errors: list[str] = []
    found = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **context}).new_page()
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("console", lambda message: errors.extend([message.text] if message.type == "error" else []))
    found.add_init_script(KEEP_SOCKET)
    found.goto(place)
    found.get_by_role("button", name="Walk", exact=True).wait_for()
    yield found
    found.context.close()
    scheduler = place.server.scheduler
    for session in list(scheduler.sessions.values()):
        scheduler.finish(session, "deleted", "the test is over")
    assert not [error for error in errors if not (refused and error.startswith("Failed to load resource"))]


@pytest.fixture
def page(browser, place) -> Iterator:
    with visit(browser, place) as found:
        yield found


@pytest.fixture
def guest(browser, place) -> Iterator:
    """A page that the server may refuse something."""
    with visit(browser, place, refused=True) as found:
        yield found


@pytest.fixture(params=[(360, 740), (844, 390)], ids=["upright", "on its side"])
def phone(request, browser, place) -> Iterator:
    viewport = dict(zip(("width", "height"), request.param, strict=True))
    with visit(browser, place, viewport=viewport, has_touch=True, is_mobile=True) as found:
        yield found


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


def sessions(place: Place) -> list:
    """The server's, in the order of their beginning."""
    return sorted(place.server.scheduler.sessions.values(), key=lambda session: session.born)


def session_of(place: Place):
    return sessions(place)[0]


def frames_stand(session, seconds: float = 0.3) -> bool:
    before = session.num_frames
    time.sleep(seconds)
    return session.num_frames == before


def test_holding_w_moves_the_picture_and_draws_the_track(page):
    walk(page)
    before, track = page.evaluate(COLOURS, "picture"), page.evaluate(COLOURS, "map")
    page.keyboard.down("w")
    until(lambda: number(page, "distance") > 8)
    assert page.inner_text("#receipts li:first-child span") == "forward"
    assert page.evaluate(COLOURS, "picture") != before
    assert page.evaluate(COLOURS, "map") != track


def test_a_key_lights_when_the_picture_shows_it_and_latency_is_measured(page):
    walk(page)
    until(lambda: number(page, "chunk") > 0)  # how long a world takes to open is no latency
    page.keyboard.down("d")
    page.wait_for_selector("button[aria-label='right, key D'].shown")
    assert 0 < number(page, "latency") < 2000
    until(lambda: page.inner_text("#receipts li:first-child b") == f"seen after {page.inner_text('#latency')} ms")
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


def test_the_slider_and_its_number_agree_when_one_comes_back_to_the_page(page):
    page.locator("#speed").fill("2")
    page.goto("about:blank")
    page.go_back()
    page.get_by_role("button", name="Walk", exact=True).wait_for()
    assert f"{float(page.input_value('#speed')):.1f}×" == page.inner_text("#speed-shown")


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
    page.keyboard.press("b")
    until(lambda: len(sessions(place)) == 2)
    late = browser.new_page()
    late.goto(place)
    late.get_by_role("button", name="Walk", exact=True).click()
    late.get_by_role("heading", name="The world is full").wait_for()
    assert "All 2 places are taken" in late.inner_text("#card p")
    page.close()
    until(lambda: not place.server.scheduler.sessions)  # a page that closes gives its places back
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
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_selector("body[data-state=live]")
    assert (session_of(place).asked.caption, session_of(place).asked.seed) == ("a hall of glass", 7)


def test_a_wrong_seed_is_said_at_its_field_before_anything_begins(page, place):
    page.locator("#seed").fill("-5")
    page.get_by_role("button", name="Walk", exact=True).click()
    assert page.evaluate("document.activeElement.id") == "seed"
    page.get_by_role("button", name="Walk", exact=True).wait_for()
    assert not sessions(place)


def test_choosing_another_start_leaves_the_walk_until_its_button_is_pressed(page, place):
    walk(page)
    page.keyboard.down("w")
    until(lambda: number(page, "distance") > 8)
    page.keyboard.up("w")
    page.locator("#examples button").nth(2).click()
    page.get_by_role("alert").filter(has_text="This walk goes on").wait_for()
    assert [s.asked.caption for s in sessions(place)] == ["wall 0"]
    page.get_by_role("button", name="Start again").click()
    until(lambda: [s.asked.caption for s in place.server.scheduler.sessions.values()] == ["wall 2"])
    assert number(page, "distance") == 0
    page.keyboard.down("d")
    page.wait_for_selector("button[aria-label='right, key D'].shown")


def test_a_chosen_start_is_seen_before_anything_begins(page, place):
    until(lambda: page.evaluate(COLOURS, "picture") > 0)
    before = page.evaluate(COLOURS, "picture")
    page.locator("#examples button").nth(1).click()
    until(lambda: page.evaluate(COLOURS, "picture") != before)
    assert not sessions(place)
    walk(page)
    assert session_of(place).asked.caption == "wall 1"


def test_a_phone_has_all_of_the_walk_on_one_screen_and_wide_enough_for_thumbs(phone):
    phone.get_by_role("button", name="Walk", exact=True).tap()
    phone.wait_for_selector("body[data-state=live]")
    names = [found.inner_text() for found in phone.locator(".cap small").all() if found.is_visible()]
    assert names[:2] == ["roll left", "forward"]
    assert len(names) == len(ACTIONS) - 1  # all but standing still
    size = phone.viewport_size
    assert phone.evaluate("document.documentElement.scrollWidth") <= size["width"]
    for part in ["#stage", ".cap", "#tools .tool", "#speed"]:
        for box in [found.bounding_box() for found in phone.locator(part).all() if found.is_visible()]:
            assert 0 <= box["x"] <= size["width"] - box["width"]
            assert 0 <= box["y"] <= size["height"] - box["height"]
    for button in phone.locator("button:enabled").all():
        if button.is_visible():
            assert min(button.bounding_box()[side] for side in ("width", "height")) >= 44, button.inner_text()


def test_no_room_waits_on_a_phone_for_receipts_that_have_not_come(phone):
    assert phone.locator("#receipts").bounding_box() is None
    phone.get_by_role("button", name="Walk", exact=True).tap()
    phone.wait_for_selector("body[data-state=live]")
    phone.keyboard.press("w")
    phone.locator("#receipts li").first.wait_for()


@pytest.mark.parametrize("size", [(1366, 630), (1280, 720), (1280, 800), (1000, 900), (1440, 900), (1920, 1080)])
def test_a_desktop_cuts_nothing_off(browser, place, size):
    viewport = dict(zip(("width", "height"), size, strict=True))
    with visit(browser, place, viewport=viewport) as page:
        walk(page)
        page.evaluate(MANY_EXAMPLES)
        for part in ["#stage", "#tools", "#deck", "aside > section", "#start", "#again", "#about"]:
            for box in [found.bounding_box() for found in page.locator(part).all() if found.is_visible()]:
                assert 0 <= box["x"] <= size[0] - box["width"]
                assert 0 <= box["y"] <= size[1] - box["height"]
        scrolls = "(({scrollHeight, clientHeight}) => scrollHeight > clientHeight)(document.querySelector('aside'))"
        assert not page.evaluate(scrolls)


def test_the_keys_leave_room_for_the_speed_below_a_small_picture(browser, place):
    with visit(browser, place, viewport={"width": 1366, "height": 630}) as page:
        edges = []
        for part in ["#move .cap:nth-child(7)", "#speed-shown", "#look .cap:nth-child(2)"]:
            box = page.locator(part).bounding_box()
            edges += [box["x"], box["x"] + box["width"]]
        assert edges == sorted(edges)


def test_a_field_s_letters_are_large_enough_that_ios_does_not_zoom(phone):
    sizes = "all => all.map((field) => parseFloat(getComputedStyle(field).fontSize))"
    assert min(phone.locator("input, textarea").evaluate_all(sizes)) >= 16


def test_the_view_of_the_track_moves_by_time_not_by_pictures(page):
    few, many = page.evaluate(EASED)
    assert few == pytest.approx(many)


def test_help_begins_at_its_beginning_on_a_phone(phone):
    phone.locator("#help-open").tap()
    assert phone.locator("#help-title").bounding_box()["y"] > 0
    phone.get_by_role("button", name="Walk on").tap()
    assert phone.locator("#help").is_hidden()


def test_two_thumbs_walk_and_look_at_once(phone):
    phone.get_by_role("button", name="Walk", exact=True).tap()
    phone.wait_for_selector("body[data-state=live]")
    names = ["forward, key W", "turn left, key ←"]
    boxes = [phone.get_by_role("button", name=name).bounding_box() for name in names]
    points = [{"x": box["x"] + 20, "y": box["y"] + 20, "id": place} for place, box in enumerate(boxes)]
    touch = phone.context.new_cdp_session(phone)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points})
    for name in names:
        phone.wait_for_selector(f"button[aria-label='{name}'].shown")
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": points[1:]})
    phone.wait_for_selector(f"button[aria-label='{names[1]}']:not(.shown)")


def test_a_finger_drags_the_picture_until_it_is_lifted(phone, place):
    phone.get_by_role("button", name="Walk", exact=True).tap()
    phone.wait_for_selector("body[data-state=live]")
    touch = phone.context.new_cdp_session(phone)
    x, y = (phone.locator("#stage").bounding_box()[side] + 20 for side in "xy")
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    turns = []
    for step in range(6, 240, 6):
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x + step, "y": y}]})
        turns.append(session_of(place).held[1][ACTIONS.index("pan_left")] > 0)
        time.sleep(0.02)
    assert sum(turns) > len(turns) / 2
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    until(lambda: session_of(place).held[1][STATIC] == 1)


def test_help_opens_by_its_key_and_lists_what_can_be_done(page):
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    assert "turn left" in page.inner_text("#help-keys")


# --- the time of a walk --------------------------------------------------------------------------------------------


def test_a_paused_world_says_so_and_makes_nothing_until_a_key_walks(page, place):
    walk(page)
    page.keyboard.down("w")
    until(lambda: number(page, "distance") > 4)
    page.keyboard.press("Space")
    page.locator("#rest").get_by_text("paused").wait_for()
    page.keyboard.up("w")  # letting go is no reason to go on
    assert session_of(place).paused
    until(lambda: frames_stand(session_of(place)))
    page.keyboard.press("d")
    until(lambda: not session_of(place).paused)
    page.locator("#status").get_by_text("walking").wait_for()


def test_going_on_after_a_pause_forgets_a_key_that_was_let_go(page, place):
    walk(page)
    page.keyboard.down("w")
    page.wait_for_selector("button[aria-label='forward, key W'].shown")
    page.get_by_role("button", name="pause").click()
    page.keyboard.up("w")
    page.get_by_role("button", name="go on").click()
    until(lambda: not session_of(place).paused and session_of(place).still)


def test_backspace_goes_back_in_time_and_cuts_the_track(page, place):
    walk(page)
    page.keyboard.down("w")
    until(lambda: page.locator("#points li").count() == 4)
    page.keyboard.up("w")
    until(lambda: frames_stand(session_of(place)))
    far, frames = number(page, "distance"), session_of(place).num_frames
    page.keyboard.press("Backspace")
    until(lambda: number(page, "distance") < far - 10)
    assert session_of(place).num_frames < frames
    assert number(page, "distance") == session_of(place).walk.actions[:, ACTIONS.index("dolly_in")].sum()


def test_a_tick_names_its_moment_and_leads_there(page, place):
    walk(page)
    page.keyboard.down("w")
    until(lambda: page.locator("#points li").count() == 4)
    page.keyboard.press("Space")
    until(lambda: frames_stand(session_of(place)))
    oldest = page.locator("#points button").last
    assert abs(float(oldest.get_attribute("aria-label").split()[0]) - session_of(place).ways_back()[-1][0]) < 0.3
    moment = session_of(place).moments[0]
    oldest.click()
    until(lambda: session_of(place).num_frames == moment.num_frames)


def test_a_branch_goes_on_from_here_and_the_walk_that_was_left_waits(page, place):
    walk(page)
    page.keyboard.down("w")
    until(lambda: number(page, "distance") > 8)
    page.get_by_role("button", name="branch").click()
    page.get_by_role("button", name="go on in walk 2").wait_for()
    until(lambda: [session.paused for session in sessions(place)] == [True, False])
    until(lambda: number(page, "distance") > 50)  # the key is still held, and the way until here counts
    page.keyboard.up("w")
    page.keyboard.press("1")
    until(lambda: [session.paused for session in sessions(place)] == [False, True])
    assert 8 < number(page, "distance") < 50
    page.get_by_role("button", name="end walk 2").click()
    until(lambda: len(sessions(place)) == 1)
    assert page.locator("[aria-label='go on in walk 1']").get_attribute("aria-pressed") == "true"


def test_a_walk_that_ends_leaves_the_strip(page, place):
    walk(page)
    page.keyboard.press("b")
    page.get_by_role("button", name="go on in walk 2").wait_for()
    place.server.scheduler.finish(session_of(place), "idle", "nobody walked")
    page.get_by_role("alert").filter(has_text="Walk 1 has ended: nobody walked").wait_for()
    assert page.locator("#walks").is_hidden()
    page.keyboard.down("w")
    page.wait_for_selector("button[aria-label='forward, key W'].shown")


@pytest.mark.parametrize("key", ["w", "Enter"])
def test_a_key_wakes_a_world_that_fell_asleep(page, place, key):
    walk(page)
    place.server.scheduler.finish(session_of(place), "idle", "nobody walked")
    page.get_by_role("heading", name="The world fell asleep").wait_for()
    page.keyboard.press(key)
    page.wait_for_selector("body[data-state=live]")


def test_a_branch_too_many_is_refused_in_a_sentence(guest, place):
    walk(guest)
    guest.keyboard.press("b")
    guest.get_by_role("button", name="go on in walk 2").wait_for()
    guest.wait_for_selector("#branch:enabled")
    guest.keyboard.press("b")
    guest.get_by_role("alert").filter(has_text="All 2 places are taken").wait_for()


# --- looking around ------------------------------------------------------------------------------------------------


def test_dragging_the_picture_turns_the_other_way_as_fast_as_the_drag(page, place):
    walk(page)
    turned = []
    for step, until_s in [(6, 0.5), (24, 0.5)]:
        page.mouse.move(700, 300)
        page.mouse.down()
        end, x, rates = time.monotonic() + until_s, 700, []
        while time.monotonic() < end:
            x -= step
            page.mouse.move(max(x, 60), 300)
            rates.append(session_of(place).held[1][ACTIONS.index("pan_right")])
            time.sleep(0.02)
        page.mouse.up()
        turned.append(max(rates))
        until(lambda: session_of(place).held[1][STATIC] == 1)
    assert 0 < turned[0] < turned[1] <= 2.5


def test_the_wheel_changes_the_speed(page):
    walk(page)
    page.mouse.move(400, 300)
    page.mouse.wheel(0, -100)
    until(lambda: page.inner_text("#speed-shown") == "1.1×")


# --- images and video ----------------------------------------------------------------------------------------------


def upload(page, name: str, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(wall(9, 1)).save(buffer, kind)
    page.set_input_files("#upload", {"name": name, "mimeType": f"image/{kind.lower()}", "buffer": buffer.getvalue()})


def test_a_walk_begins_in_an_uploaded_picture_without_the_example_s_prompt(page, place):
    upload(page, "wall.png", "PNG")
    page.locator("#examples button[title='wall.png'][aria-pressed=true]").wait_for()
    walk(page)
    assert session_of(place).asked.caption == ""
    assert (session_of(place).image == wall(9, 1)).all()


def test_a_file_that_is_no_picture_is_refused_before_it_is_sent(page):
    page.set_input_files("#upload", {"name": "notes.png", "mimeType": "image/png", "buffer": b"not a picture"})
    said = "The file notes.png is no picture that can be read; allowed are PNG, JPEG, WEBP"
    page.get_by_role("alert").filter(has_text=said).wait_for()
    walk(page)
    assert page.locator("#toast").is_hidden()  # what is begun anew is free of what was said before


def test_a_phone_s_large_photograph_is_cut_and_drawn_down_before_it_is_sent(page, place):
    lying = Image.new("L", (4500, 10000))  # 45 megapixels; the server takes 32
    lying.paste(255, (0, 1500, 2250, 8500))  # above, and in the middle, once it is upright
    exif = Image.Exif()
    exif[0x0112] = 6  # its left side is the upper one
    buffer = io.BytesIO()
    lying.save(buffer, "JPEG", exif=exif)
    page.set_input_files("#upload", {"name": "IMG.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()})
    page.locator("#examples button[title='IMG.jpg'][aria-pressed=true]").wait_for()
    walk(page)
    assert (session_of(place).image[:14] > 240).all()
    assert (session_of(place).image[18:] < 15).all()


def test_a_good_picture_takes_back_what_was_said_of_a_bad_one(page):
    page.set_input_files("#upload", {"name": "notes.png", "mimeType": "image/png", "buffer": b"not a picture"})
    page.get_by_role("alert").filter(has_text="no picture that can be read").wait_for()
    upload(page, "wall.png", "PNG")
    page.locator("#examples button[title='wall.png'][aria-pressed=true]").wait_for()
    assert page.locator("#toast").is_hidden()


def test_a_picture_that_the_server_does_not_take_is_said_and_leaves_the_gallery(guest):
    count = guest.locator("#examples button").count()
    upload(guest, "wall.gif", "GIF")
    guest.locator("#examples button[title='wall.gif'][aria-pressed=true]").wait_for()
    guest.get_by_role("button", name="Walk", exact=True).click()
    said = "The image is of no known format; allowed is a PNG, JPEG or WEBP in base64"
    guest.locator("#card").get_by_text(said).wait_for()
    assert guest.locator("#examples button").count() == count
    guest.get_by_role("button", name="Try again").click()
    guest.wait_for_selector("body[data-state=live]")


def test_a_start_picture_that_does_not_come_keeps_nobody_from_walking(guest):
    guest.route("**/v1/examples/*", lambda route: route.fulfill(status=503, json={"error": "no server is ready"}))
    with guest.expect_response("**/v1/examples/1.jpg"):
        guest.locator("#examples button").nth(1).click()
    walk(guest)


def test_nothing_is_recorded_before_a_walk(page):
    assert page.locator("#record").is_disabled()
    page.keyboard.press("v")
    assert page.inner_text("#record") == "Record"
    walk(page)
    assert page.locator("#record").is_enabled()


@pytest.mark.parametrize("way", ["() => null", FIREFOX_TAKES_FRAMES], ids=["by the track", "by the stream"])
def test_a_recording_is_a_video_of_what_was_seen(page, tmp_path, way):
    page.evaluate(way)
    walk(page)
    page.keyboard.down("d")
    page.keyboard.press("v")
    page.get_by_role("button", name="stop recording").wait_for()
    until(lambda: page.inner_text("#record") == "0:01")
    with page.expect_download() as found:
        page.keyboard.press("v")
    name = found.value.suggested_filename
    ending = name.rpartition(".")[2]
    found.value.save_as(tmp_path / name)
    page.get_by_role("alert").filter(has_text=f"MB of {ending.upper()}: {name}").wait_for()
    with av.open(str(tmp_path / name)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) > 12
    assert frames[0].shape == (480, 720, 3)
    assert abs(frames[0].astype(int) - frames[-1]).mean() > 5


def test_an_empty_recording_is_no_download(page):
    page.evaluate("() => Object.defineProperty(BlobEvent.prototype, 'data', { get: () => new Blob() })")
    walk(page)
    page.keyboard.press("v")
    page.get_by_role("button", name="stop recording").wait_for()
    page.keyboard.press("v")
    page.get_by_role("alert").filter(has_text="This browser recorded nothing").wait_for()


# --- who may walk --------------------------------------------------------------------------------------------------


def test_a_server_with_keys_asks_for_one_in_a_field(browser):
    with serving(FakeWorld(), {"k" * 16: "someone"}) as locked, visit(browser, locked, refused=True) as page:
        page.get_by_role("button", name="Walk", exact=True).click()
        page.get_by_text("This server asks for a key.").first.wait_for()
        assert page.get_by_text("API key").bounding_box()["height"] < 25  # one line
        assert page.evaluate("document.activeElement.id") == "api-key"
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        page.locator("#card").get_by_text("The API key is not one of this server's.").wait_for()
        page.get_by_label("API key").fill("k" * 16)
        said = {"error": "all places are taken"}
        page.route("**/v1/sessions", lambda route: route.fulfill(status=429, json=said), times=1)
        page.get_by_role("button", name="Open").click()
        page.get_by_text("All places are taken").first.wait_for()
        assert page.get_by_label("API key").is_hidden()  # it was right
        page.get_by_role("button", name="Try now").click()
        page.wait_for_selector("body[data-state=live]")


def test_a_key_with_a_character_that_cannot_be_sent_is_said(browser):
    with serving(FakeWorld(), {"k" * 16: "someone"}) as locked, visit(browser, locked, refused=True) as page:
        page.get_by_role("button", name="Walk", exact=True).click()
        page.get_by_label("API key").fill("k" * 15 + "…")
        page.keyboard.press("Enter")
        page.locator("#card").get_by_text("The API key has a character that no key has.").wait_for()
        page.get_by_label("API key").fill("k" * 16)
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-state=live]")


def test_a_page_that_comes_by_a_wrong_name_is_not_asked_for_a_key(guest):
    said = {"error": "pages of another site may not call this server"}  # a proxy did not hand the name on
    guest.route("**/v1/sessions", lambda route: route.fulfill(status=403, json=said))
    guest.get_by_role("button", name="Walk", exact=True).click()
    guest.locator("#card").get_by_text("Pages of another site may not call this server").wait_for()
    assert guest.get_by_label("API key").is_hidden()


def test_a_walk_too_many_is_said_of_the_address_not_of_the_person(browser):
    with serving(FakeWorld(), sessions_each=1) as strict, visit(browser, strict) as first:
        walk(first)
        with visit(browser, strict, refused=True) as second:
            second.get_by_role("button", name="Walk", exact=True).click()
            said = "This address or API key has as many walks as it may: 1"
            second.locator("#card").get_by_text(said).wait_for()


# --- coming back ---------------------------------------------------------------------------------------------------


class Line:
    """Between page and server: connections can be cut, kept silent, or refused."""

    def __init__(self, page):
        self.sockets: list = []
        self.refusals: list[int] = []
        self.silent = False
        page.route_web_socket("**/stream", self.connect)

    def connect(self, socket) -> None:
        self.sockets.append(socket)
        if self.refusals:
            socket.close(code=self.refusals.pop(0))
            return
        server = socket.connect_to_server()
        socket.on_message(lambda message: self.silent or server.send(message))
        server.on_message(lambda message: self.silent or socket.send(message))


def test_a_walk_that_moves_goes_on_without_a_word_in_the_way(page, place):
    line = Line(page)
    walk(page)
    page.keyboard.down("w")
    until(lambda: number(page, "distance") > 4)
    before = session_of(place)
    line.refusals = [4429, 4404]  # the next server is full, then does not know of it yet
    router = Access({}, 60.0, place.secret).issue("router")
    moved = page.request.post(f"{place}/v1/sessions/{before.id}/move", headers={"authorization": f"Bearer {router}"})
    assert moved.status == 202
    page.locator("#status").get_by_text("moving").wait_for()
    assert page.locator("#card").is_hidden()
    page.evaluate("document.getElementById('toast').hidden = false")  # that the server is closing
    page.wait_for_selector("body[data-state=live]")
    assert page.locator("#toast").is_hidden()
    far = number(page, "distance")
    until(lambda: number(page, "distance") > far + 4)  # the key is still held
    assert session_of(place) is not before
    assert session_of(place).id == before.id


def test_a_silent_connection_is_given_up_when_the_machine_wakes(page, place):
    line = Line(page)
    walk(page)
    line.silent = True
    page.evaluate("dispatchEvent(new Event('online'))")
    page.get_by_role("heading", name="The connection was lost").wait_for(timeout=8000)  # unasked it takes 10 s or more
    line.silent = False
    page.wait_for_selector("body[data-state=live]")
    assert len(sessions(place)) == 1


def test_figures_begin_anew_after_a_lost_connection(page):
    walk(page)
    page.keyboard.down("w")
    until(lambda: number(page, "fps") > 5)
    page.evaluate("socket.close()")
    page.get_by_role("heading", name="The connection was lost").wait_for()
    page.wait_for_selector("button[aria-label='forward, key W'].shown")
    page.keyboard.down("d")
    page.wait_for_selector("button[aria-label='right, key D'].shown")
    assert number(page, "latency") < 600
    until(lambda: number(page, "fps") > 5)
    assert page.locator("#receipts .waiting").count() == 0


# --- for everybody -------------------------------------------------------------------------------------------------


def test_every_control_is_reached_by_the_keyboard_and_shows_that_it_is(page):
    walk(page)
    page.keyboard.down("w")
    until(lambda: page.locator("#points li").count() > 0)
    page.keyboard.up("w")
    page.keyboard.press("Space")
    shown: dict[str, bool] = {}
    while True:
        page.keyboard.press("Tab")
        name, visible = page.evaluate(FOCUS)
        if name in shown:
            break
        shown[name] = visible
    controls = [found for found in page.locator("button:enabled, input, textarea").all() if found.is_visible()]
    assert len(shown) == len(controls) + len(["body", "the link that skips", "the stage"])
    assert all(visible for name, visible in shown.items() if name != "body")


def test_a_whole_walk_needs_no_pointer(page, place):
    page.get_by_role("button", name="Walk", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=live]")
    assert page.evaluate("document.activeElement.id") == "stage"
    page.keyboard.down("w")
    until(lambda: page.locator("#points li").count() > 0)
    page.keyboard.up("w")
    page.keyboard.press("b")
    page.get_by_role("button", name="go on in walk 2").wait_for()
    page.keyboard.press("1")
    until(lambda: [session.paused for session in sessions(place)] == [False, True])
    page.keyboard.press("Space")
    until(lambda: all(session.paused for session in sessions(place)))


def test_who_does_not_see_the_picture_hears_that_the_walk_has_begun(page):
    walk(page)
    page.locator("#voice").get_by_text("walk 1 has begun").wait_for()


def test_pictures_that_were_dropped_and_those_that_were_skipped_are_two_figures(page):
    walk(page)
    page.keyboard.down("w")
    until(lambda: page.inner_text("#skipped") not in ("–", ""))
    assert page.inner_text("#dropped") == "0"


def test_text_stands_out_from_the_brightest_ground(page):
    begin = page.evaluate(CONTRAST)
    walk(page)
    page.keyboard.press("Space")
    page.keyboard.press("Backspace")  # there is nothing to go back to yet, as a toast says
    page.locator("#rest").get_by_text("paused").wait_for()
    lines = begin + page.evaluate(CONTRAST)
    assert len(lines) > 60
    assert not [line for line in lines if line[1] < 4.5]


def test_what_is_lit_or_drawn_is_seen_in_a_system_s_own_few_colours(browser, place):
    ground = "element => getComputedStyle(element).backgroundColor"
    with visit(browser, place, forced_colors="active") as page:
        walk(page)
        page.keyboard.down("w")
        lit = page.locator("button[aria-label='forward, key W'].shown").evaluate(ground)
        assert lit != page.locator("button[aria-label='back, key S']").evaluate(ground)
        assert page.locator("#map").evaluate(ground) == page.locator("#bars").evaluate(ground) == "rgb(11, 12, 15)"


def test_the_narrowest_phone_lets_nothing_stand_over_an_edge(browser, place):
    with visit(browser, place, viewport={"width": 320, "height": 568}, has_touch=True, is_mobile=True) as page:
        walk(page)
        page.get_by_role("button", name="Start again").wait_for()
        for part in ["#stage", "#map", "#examples", "#again"]:
            box = page.locator(part).bounding_box()
            assert 12 <= box["x"] <= 308 - box["width"]


def test_nothing_moves_by_itself_for_who_asked_for_less_motion(browser, place):
    with visit(browser, place, reduced_motion="reduce") as page:
        walk(page)
        page.keyboard.press("v")
        page.get_by_role("button", name="stop recording").wait_for()
        assert page.evaluate("document.getAnimations().length") == 0
