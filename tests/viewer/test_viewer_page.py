"""The page in a real browser, against a real Triton server: load, play, settings, a server killed and back."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from autogaze_client.viewer.serving import ViewerServer

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def gaze_server(triton: Callable[[int], Any]) -> Any:
    return triton(0)


@pytest.fixture(scope="module")
def viewer(gaze_server: Any) -> Iterator[ViewerServer]:
    with ViewerServer(gaze_server.url) as serving:
        yield serving


@pytest.fixture
def page(browser: Any, viewer: ViewerServer) -> Iterator[Any]:
    """The page, live; every request and error that it makes is recorded."""
    opened = browser.new_page()
    opened.asked, opened.errors = [], []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("websocket", lambda socket: opened.asked.append(socket.url))
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on(
        "console", lambda message: opened.errors.append(message.text) if message.type == "error" else None
    )
    opened.goto(viewer.page_url)
    results(opened, 2)
    yield opened
    opened.close()


def until(page: Any, expression: str, seconds: float = 30.0) -> None:
    """Waits for an expression to hold; polled from here, since the page's policy forbids it to evaluate text."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} does not hold after {seconds} s"
        page.wait_for_timeout(50)


def results(page: Any, more: int) -> None:
    """Waits for so many more answers of the server."""
    seen = page.evaluate("autogaze.results")
    until(page, f"autogaze.results >= {seen + more}", 60)


def pixels(page: Any, panel: str) -> np.ndarray:
    """What a panel shows, uint8 RGBA [H, W, 4]."""
    width, height, values = page.evaluate(
        """(id) => { const c = document.getElementById(id), d = c.getContext('2d');
        return [c.width, c.height, btoa(Array.from(d.getImageData(0, 0, c.width, c.height).data,
        (v) => String.fromCharCode(v)).join(''))]; }""",
        panel,
    )
    return np.frombuffer(base64.b64decode(values), np.uint8).reshape(height, width, 4)


def pause(page: Any) -> None:
    page.click("#play")
    until(page, "!autogaze.playing")


# Some of the picture is chosen, and some is not: full and empty masks make styles look alike.
PARTIAL = "autogaze.mask.pixels > 0 && autogaze.mask.pixels < 0.9 * autogaze.mask.covered.length"


def pause_when(page: Any, expression: str, seconds: float = 90.0) -> None:
    """Pauses at a picture for which an expression holds: which picture is shown when depends on the machine."""
    deadline = time.monotonic() + seconds
    while True:
        pause(page)
        if page.evaluate(expression):
            return
        assert time.monotonic() < deadline, f"no picture with {expression} in {seconds} s"
        page.click("#play")
        results(page, 1)


def cells(page: Any) -> np.ndarray:
    """The mask's cells, [n, 5]: x0, x1, y0, y1, grid."""
    return np.reshape(page.evaluate("autogaze.mask.cells"), (-1, 5))


def covered(page: Any) -> np.ndarray:
    height, width = pixels(page, "input").shape[:2]
    return np.array(page.evaluate("Array.from(autogaze.mask.covered)"), bool).reshape(height, width)


def test_it_loads_and_plays(page, viewer):
    """Three panels live, numbers in their format, nothing asked of third parties, no errors."""
    first = pixels(page, "input")
    assert first.shape == (360, 640, 4)
    results(page, 2)
    assert (pixels(page, "input") != first).any()
    assert pixels(page, "mask")[..., 3].max() == 255
    assert pixels(page, "output")[..., :3].max() > 0
    until(page, "!document.getElementById('fps-infer').textContent.includes('-')")
    for name in ("fps-render", "fps-infer", "psnr", "gaze"):
        text = page.inner_text(f"#{name}").rstrip("%")
        assert len(text) == 5
        assert float(text) >= 0
    assert page.inner_text("#status").startswith("live")
    home = viewer.page_url.split("//")[1]
    assert {address.split("//")[1].split("/")[0] + "/" for address in page.asked} == {home}
    assert page.errors == []


def test_panels_are_what_the_python_states_draw(page):
    """The masked pixels of the mask panel, and the interframe rule of the output, byte for byte."""
    page.select_option("#view", "full-blend")
    page.select_option("#style", "image-overlay")
    results(page, 2)
    pause(page)
    source, mask, output, chosen = (
        pixels(page, "input"),
        pixels(page, "mask"),
        pixels(page, "output"),
        covered(page),
    )
    np.testing.assert_array_equal(mask[~chosen], source[~chosen])
    keep = np.float32(1) - np.float32(0.38)
    white = source[..., :3].astype(np.float32) * keep + np.float32(255) * np.float32(0.38)
    expected = np.where(chosen[..., None], np.floor(white + 0.5), source[..., :3])
    np.testing.assert_array_equal(output[..., :3], expected)
    page.select_option("#style", "overlay")
    overlay = pixels(page, "mask")
    assert (overlay[~chosen] == (0, 0, 0, 255)).all()
    canvas = np.zeros_like(source)
    colours = {2: (255, 180, 0), 4: (60, 220, 120), 7: (0, 185, 255), 14: (230, 110, 255)}
    for x0, x1, y0, y1, grid in cells(page):
        canvas[y0:y1, x0:x1, :3] = colours[grid]
        canvas[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1, :3] = [(42 * v + 50) // 100 for v in colours[grid]]
    canvas[..., 3] = 255
    np.testing.assert_array_equal(overlay, canvas)
    page.select_option("#style", "image-mask-only")
    assert (pixels(page, "mask")[~chosen] == 0).all()


def test_the_slider_changes_what_is_asked_for(page):
    """Quality is 1 − requirement; more quality asks for at least as many tokens; arrow keys move it."""
    counts = {}
    for quality in ("0", "1"):
        page.locator("#quality").fill(quality)
        results(page, 3)
        counts[quality] = page.evaluate("autogaze.tokens")
    assert counts["1"] > counts["0"]
    assert page.inner_text("#quality-text") == "100 % (loss ≤ 0.00)"
    page.locator("#quality").press("ArrowLeft")
    assert page.locator("#quality").get_attribute("aria-valuetext") == "99 % (loss ≤ 0.01)"


def test_styles_differ(page):
    pause_when(page, f"{PARTIAL} && autogaze.mask.grids.length > 1")
    shown = {}
    for style in ("image-mask-only", "image-overlay", "overlay", "scale-rows"):
        page.select_option("#style", style)
        shown[style] = pixels(page, "mask").tobytes()
    assert len(set(shown.values())) == 4


def test_geometries_lay_out_the_cells(page):
    """Native cells lie where their grid says, no deduplicated one lies in another, effective ones are fine."""
    page.locator("#quality").fill("0.3")
    found = {}
    for geometry in ("native", "deduplicated", "effective"):
        page.select_option("#geometry", geometry)
        results(page, 2)
        found[geometry] = cells(page)
    x0, x1, _, _, grid = found["native"].T
    assert len(x0) > 0
    column = (x0 + x1) * grid // (2 * 640)
    np.testing.assert_array_equal(x0, column * 640 // grid)
    np.testing.assert_array_equal(x1, -(-(column + 1) * 640 // grid))
    for index, (x0, x1, y0, y1, _) in enumerate(found["deduplicated"]):
        others = np.delete(found["deduplicated"], index, axis=0)
        assert not (
            (others[:, 0] <= x0) & (x1 <= others[:, 1]) & (others[:, 2] <= y0) & (y1 <= others[:, 3])
        ).any()
    x0, x1, _, _, _ = found["effective"].T
    assert len(x0) > 0
    assert (x1 - x0 <= 640 // 14 + 2).all()


def test_a_keyframe_shows_the_input(page):
    page.locator("#keyframe").fill("1")
    until(page, "autogaze.output.keyframe")
    pause(page)
    np.testing.assert_array_equal(pixels(page, "output"), pixels(page, "input"))


def test_patch_differences_and_tiled_modes(page):
    page.select_option("#geometry", "native")
    page.select_option("#mask-source", "patch-diff")
    page.locator("#quality").fill("0.9")
    results(page, 3)
    pause_when(page, f"{PARTIAL} && !autogaze.output.keyframe")
    assert page.evaluate("autogaze.mask.grids") == [14]
    source, output, chosen = pixels(page, "input"), pixels(page, "output"), covered(page)
    assert 0 < chosen.mean() < 0.9
    np.testing.assert_array_equal(output[chosen], source[chosen])
    assert (output[~chosen] != source[~chosen]).any()
    page.click("#play")
    page.select_option("#mask-source", "autogaze")
    page.locator("#quality").fill("0")
    page.select_option("#mode", "tiled_full_resolution")
    results(page, 2)
    assert page.evaluate("autogaze.tokens") > 1
    assert page.inner_text("#status").startswith("live")


def test_keyboard_and_labels(page):
    """Every control has a name; keys work; the keys of a focused control stay its own."""
    page.keyboard.press("Space")
    until(page, "!autogaze.playing")
    assert page.inner_text("#status") == "paused"
    frames = page.evaluate("autogaze.frames")
    page.keyboard.press("Space")
    until(page, f"autogaze.frames > {frames}")
    page.keyboard.press("s")
    assert page.input_value("#style") == "image-overlay"
    page.keyboard.press("g")
    assert page.input_value("#geometry") == "native"
    page.keyboard.press("m")
    assert page.input_value("#mask-source") == "patch-diff"
    page.focus("#keyframe")
    page.keyboard.press("s")
    assert page.input_value("#style") == "image-overlay"
    unnamed = page.evaluate(
        """[...document.querySelectorAll('select, input, button, canvas')].filter((e) => !(e.labels?.length
        || e.getAttribute('aria-label') || e.textContent.trim())).map((e) => e.id)"""
    )
    assert unnamed == []
    assert page.get_attribute("#status", "role") == "status"


def test_one_request_is_in_flight_and_stale_answers_are_dropped(page):
    """Frames are drawn on while a request is under way; an answer to old settings is counted and dropped."""
    before = page.evaluate("[autogaze.frames, autogaze.results]")
    results(page, 3)
    after = page.evaluate("[autogaze.frames, autogaze.results]")
    assert after[0] - before[0] > after[1] - before[1]
    for index in range(200):
        page.locator("#quality").fill(str(0.5 + 0.01 * (index % 2)))
        if int(page.inner_text("#stale")):
            break
    assert int(page.inner_text("#stale")) > 0


def test_a_camera_and_a_file(page, bunny):
    page.select_option("#source", "camera")
    until(page, "autogaze.source.label === 'camera'")
    results(page, 2)
    with page.expect_file_chooser() as chooser:
        page.select_option("#source", "file")
    chooser.value.set_files(str(bunny))
    until(
        page,
        "autogaze.source.label === 'bigbuckbunny.mp4' || document.getElementById('source').value === 'synthetic'",
    )
    if page.input_value("#source") == "synthetic":
        pytest.skip("this Chromium does not decode H.264")
    results(page, 2)
    assert pixels(page, "input").std() > 10


def test_a_server_that_is_killed_and_comes_back(page, gaze_server, triton):
    """The page says so, keeps drawing, and goes on by itself."""
    port = gaze_server.ports.grpc
    gaze_server.stop()
    until(page, "document.getElementById('status').dataset.state === 'lost'", 60)
    assert "does not answer" in page.inner_text("#status")
    frames = page.evaluate("autogaze.frames")
    until(page, f"autogaze.frames > {frames + 5}")
    triton(port)
    until(page, "document.getElementById('status').dataset.state === 'live'", 60)
    results(page, 3)
    assert page.errors == []


def test_a_viewer_that_ends_is_told(browser):
    with ViewerServer("localhost:1") as viewer:
        page = browser.new_page()
        page.goto(viewer.page_url)
        until(page, "document.getElementById('status').textContent.includes('does not answer')")
    until(page, "document.getElementById('status').textContent.includes('own process is gone')")
    port = viewer.port
    with ViewerServer("localhost:1", port=port):
        until(page, "document.getElementById('status').textContent.includes('does not answer')")
    page.close()
