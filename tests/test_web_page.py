"""The page of ``--target web`` in headless Chromium: ``make test-web`` runs these.

They need playwright and a Chromium (Debian's package); the masks are compared with the runtime's.
"""

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from skimage import data

from pocketsam import Segmenter, export
from pocketsam.errors import DownloadError
from pocketsam.export.bundle import describe_file
from pocketsam.export.to_web.site import add_page
from pocketsam.runtime.bundle import DEFAULT_BUNDLE
from pocketsam.runtime.rle import from_rle, mask_iou

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="there is no Chromium (on Debian: apt install chromium)"
    ),
]
TIMEOUT = 120_000
ELSEWHERE = "elsewhere.test"
"""A name of this machine that browsers do not trust as they trust localhost."""
READY = "#engine.good, #engine.bad"


class Server(http.server.ThreadingHTTPServer):
    """A plain static server, as ``python -m http.server`` is one."""

    def __init__(self, folder: Path) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server_port}/"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page around the default bundle."""
    folder = tmp_path_factory.mktemp("site") / "site"
    shutil.copytree(DEFAULT_BUNDLE, folder)
    try:
        add_page(folder)
    except DownloadError as error:
        pytest.skip(f"onnxruntime-web cannot be had: {error}")
    return folder


@pytest.fixture(scope="module")
def address(site):
    server = Server(site)
    yield server.address
    server.stop()


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright):
    browser = playwright.chromium.launch(
        executable_path=CHROMIUM,
        args=["--no-sandbox", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"],
    )
    yield browser
    browser.close()


@contextlib.contextmanager
def open_page(browser, address: str, *, is_ready: bool = True, **options) -> Iterator:
    """Gives the page; ``errors`` and ``requests`` of it are lists."""
    with contextlib.closing(
        browser.new_context(viewport={"width": 1200, "height": 900}, **options)
    ) as context:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.errors, page.requests = [], []
        page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        context.on("request", lambda request: page.requests.append(request.url))
        page.goto(address)
        if is_ready:
            page.wait_for_selector(READY)
        yield page


@pytest.fixture(scope="module")
def loaded(browser, address):
    with open_page(browser, address) as page:
        yield page


@pytest.fixture
def page(loaded):
    """The page, loaded once for all tests that do not need another."""
    loaded.evaluate("document.getElementById('proof').close()")
    yield loaded
    assert loaded.errors == []


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def give(page, content: bytes, name: str = "photo.png") -> None:
    """Chooses a file, without waiting for what becomes of it."""
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def show(page, content: bytes, name: str = "photo.png") -> None:
    give(page, content, name)
    page.wait_for_function(
        "name => document.getElementById('busy').hidden && !document.getElementById('stage').hidden",
        arg=name,
    )


def place(page, x: float, y: float) -> tuple[float, float]:
    """Returns where fractions of the photograph are on the screen."""
    box = page.locator("#stage").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def click(page, x: float, y: float, **options) -> None:
    page.mouse.click(*place(page, x, y), **options)
    wait(page)


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*place(page, *start))
    page.mouse.down()
    page.mouse.move(*place(page, *end), steps=4)
    page.mouse.up()
    wait(page)


def wait(page) -> None:
    """Waits until the page has done what it was asked for."""
    page.wait_for_timeout(50)
    page.evaluate("async () => { const { settled } = await import('./app.js'); await settled(); }")


def save(page, kind: str) -> bytes:
    page.select_option("#kind", kind)
    with page.expect_download() as download:
        page.click("#download")
    return Path(download.value.path()).read_bytes()


def annotations(page) -> list[dict]:
    return json.loads(save(page, "json"))["annotations"]


def runtime_mask(segmenter: Segmenter, prompt: dict) -> np.ndarray:
    points, labels = (prompt[key] or None for key in ("point_coords", "point_labels"))
    box = prompt["box"]
    is_ambiguous = len(labels or []) + (2 if box else 1) < 3
    masks, scores, _ = segmenter.predict(points, labels, box, multimask_output=is_ambiguous)
    return masks[scores.argmax()]


def photographs() -> dict[str, np.ndarray]:
    landscape = data.coffee()
    return {
        "landscape": landscape,
        "portrait": np.ascontiguousarray(data.astronaut()[:, 100:400]),
        "panorama": np.ascontiguousarray(landscape[100:250]),
        "tiny": np.ascontiguousarray(landscape[60:93, 200:247]),
        "grey": np.repeat(data.camera()[:, :, None], 3, axis=2),
    }


@pytest.mark.parametrize("name", list(photographs()))
def test_masks_are_the_runtimes(page, name):
    pixels = photographs()[name]
    show(page, png(pixels))
    click(page, 0.5, 0.5)
    page.keyboard.press("Enter")
    click(page, 0.4, 0.6)
    click(page, 0.8, 0.2, button="right")
    page.keyboard.press("Enter")
    drag(page, (0.25, 0.3), (0.75, 0.9))
    found = annotations(page)
    assert len(found) == 3
    assert found[1]["prompt"]["point_labels"] == [1, 0]
    assert found[2]["prompt"]["box"] is not None
    segmenter = Segmenter()
    segmenter.set_image(pixels)
    for annotation in found:
        mask = from_rle(annotation["segmentation"])
        assert mask.shape == pixels.shape[:2]
        assert mask_iou(mask, runtime_mask(segmenter, annotation["prompt"])) >= 0.99
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()


def test_a_turned_jpeg_is_shown_upright(page):
    pixels = data.coffee()
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(buffer, "JPEG", quality=97, exif=exif)
    show(page, buffer.getvalue(), "turned.jpg")
    click(page, 0.5, 0.5)
    (annotation,) = annotations(page)
    segmenter = Segmenter()
    segmenter.set_image(Image.open(buffer))
    assert annotation["segmentation"]["size"] == list(pixels.shape[:2])
    mask = from_rle(annotation["segmentation"])
    assert mask_iou(mask, runtime_mask(segmenter, annotation["prompt"])) >= 0.99


def test_files_hold_the_same_mask(page):
    pixels = data.astronaut()
    show(page, png(pixels))
    drag(page, (0.25, 0.6), (0.42, 0.85))
    (annotation,) = annotations(page)
    mask = from_rle(annotation["segmentation"])
    assert 0.005 < mask.mean() < 0.5
    cutout = np.asarray(Image.open(io.BytesIO(save(page, "cutout"))))
    assert (cutout[..., 3] == 255 * mask).all()
    assert (cutout[mask][:, :3] == pixels[mask]).all()
    assert (np.asarray(Image.open(io.BytesIO(save(page, "mask"))).convert("L")) == 255 * mask).all()
    svg = save(page, "svg").decode()
    filled = page.evaluate(
        """async ([svg, width, height]) => {
            const canvas = new OffscreenCanvas(width, height);
            const context = canvas.getContext('2d');
            context.fill(new Path2D(/ d="([^"]+)"/.exec(svg)[1]), 'evenodd');
            const { data } = context.getImageData(0, 0, width, height);
            return Array.from(data.filter((_, i) => i % 4 === 3));
        }""",
        [svg, mask.shape[1], mask.shape[0]],
    )
    assert (np.array(filled).reshape(mask.shape) == 255 * mask).all()


def test_nothing_leaves_the_origin_and_it_works_offline(browser, site):
    server = Server(site)
    with open_page(browser, server.address) as page:
        page.wait_for_selector("html[data-offline=yes]", state="attached")
        assert page.inner_text("#engine").startswith("WebAssembly")
        assert page.evaluate("crossOriginIsolated")
        server.stop()
        page.reload()
        page.wait_for_selector(READY)
        page.click("#sample")
        page.wait_for_selector("#stage:not([hidden])")
        wait(page)
        click(page, 0.5, 0.3)
        assert len(annotations(page)) == 1
        assert {url.split("/")[2] for url in page.requests if url.startswith("http")} == {
            server.address.split("/")[2]
        }
        assert page.errors == []


def test_another_export_in_the_same_place_is_taken(browser, site, tmp_path):
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    server = Server(folder)
    with open_page(browser, server.address) as page:
        page.wait_for_selector("html[data-offline=yes]", state="attached")
        for name, old, new in (
            ("index.html", "<title>pocketsam", "<title>another pocketsam"),
            ("sw.js", "'pocketsam-' + ", "'pocketsam-another-' + "),
        ):
            text = (folder / name).read_text()
            assert old in text
            (folder / name).write_text(text.replace(old, new))
        page.reload()  # the new service worker fetches its files; the old page works on
        page.wait_for_selector(READY)
        assert page.title().startswith("pocketsam")
        page.wait_for_function("async () => (await navigator.serviceWorker.getRegistration()).waiting")
        server.stop()
        page.reload()  # offline: all of the new export is here
        page.wait_for_function("document.title.startsWith('another pocketsam')")
        page.wait_for_selector(READY)
        (kept,) = page.evaluate("caches.keys()")
        assert "another" in kept
        assert page.errors == []


def test_copying(browser, address):
    """Pictures as PNG, the others as text; a refusal is said."""
    with open_page(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.click("#sample")
        wait(page)
        click(page, 0.44, 0.21)
        for kind, type_, start in (
            ("mask", "image/png", "\x89PNG"),
            ("svg", "text/plain", "<svg"),
            ("json", "text/plain", "{"),
        ):
            page.select_option("#kind", kind)
            page.click("#copy")
            wait(page)
            assert page.inner_text("#message") == "Copied."
            read = """async (type) => {
                const [item] = await navigator.clipboard.read();
                const bytes = new Uint8Array(await (await item.getType(type)).arrayBuffer());
                return String.fromCharCode(...bytes.slice(0, 4));
            }"""
            assert page.evaluate(read, type_).startswith(start)
        page.context.clear_permissions()
        page.evaluate("() => { navigator.clipboard.write = () => Promise.reject(new Error('no')); }")
        page.click("#copy")
        wait(page)
        assert "did not allow copying" in page.inner_text("#message")


def test_a_click_belongs_to_the_photograph_that_was_clicked(browser, address):
    """Of clicks while another photograph is read, none is answered on that one."""
    with open_page(browser, address) as page:
        page.click("#sample")
        wait(page)
        page.evaluate("document.getElementById('sample').click()")  # it is hidden by now
        page.mouse.click(*place(page, 0.44, 0.21))
        wait(page)
        assert page.locator("#list li").count() == 0
        click(page, 0.44, 0.21)
        assert page.locator("#list li").count() == 1


def test_other_files_of_the_place_are_left_alone(browser, site, tmp_path):
    """A server's own answers, and what another project puts there later."""
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    (folder / "answer.txt").write_text("first")
    server = Server(folder)
    with open_page(browser, server.address) as page:
        page.wait_for_selector("html[data-offline=yes]", state="attached")
        read = "async () => (await fetch('answer.txt', {cache: 'no-store'})).text()"
        assert page.evaluate(read) == "first"
        (folder / "answer.txt").write_text("second")
        assert page.evaluate(read) == "second"
    server.stop()


def test_the_proof_is_shown(page):
    page.click("#engine")
    assert page.inner_text("#verdict").startswith("Yes")
    assert page.locator("#figures tr").count() == 4
    assert page.locator("#figures td.bad").count() == 0
    assert " ms" in page.inner_text("#about")


SIZES = {"phone": (360, 740, "dark"), "tablet": (820, 1100, "light"), "laptop": (1280, 800, "light")}


@pytest.mark.parametrize("name", list(SIZES))
def test_it_fits_and_is_pictured(browser, address, name):
    """``make page-pictures`` keeps the pictures for the docs."""
    width, height, scheme = SIZES[name]
    folder = os.environ.get("PAGE_PICTURES")
    viewport = {"width": width, "height": height}
    with open_page(browser, address, color_scheme=scheme) as page:
        page.set_viewport_size(viewport)
        for step in ("empty", "marked"):
            if step == "marked":
                page.click("#sample")
                wait(page)
                drag(page, (0.25, 0.66), (0.42, 0.84))
                page.locator("#new").click()
                click(page, 0.72, 0.8)
                page.locator("h1").click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for button in page.locator("button:visible").all():
                box = button.bounding_box()
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= width
                assert box["height"] >= 30
            if folder:
                picture = page.screenshot(type="jpeg", quality=85, full_page=True)
                (Path(folder) / f"web-{name}{'' if step == 'marked' else '-empty'}.jpg").write_bytes(
                    picture
                )


def test_undo_clear_and_keys(page):
    show(page, png(data.coffee()))
    page.locator("#stage").focus()
    for key in ("ArrowRight", "ArrowDown", " "):
        page.keyboard.press(key)
        wait(page)
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("Shift+ ")
    wait(page)
    (annotation,) = annotations(page)
    assert annotation["prompt"]["point_labels"] == [1, 0]
    page.keyboard.press("Control+z")
    assert annotations(page)[0]["prompt"]["point_labels"] == [1]
    page.click("#clear")
    assert page.locator("#list li").count() == 0
    page.click("#undo")
    assert page.locator("#list li").count() == 1
    page.locator("#stage").focus()
    page.keyboard.press("Delete")
    assert page.locator("#list li").count() == 0


def test_everything_finds_objects_and_stops(page):
    show(page, png(data.astronaut()))
    page.click("#everything")
    page.wait_for_function("document.getElementById('everything').textContent === 'Everything'")
    found = annotations(page)
    assert len(found) >= 10
    segmenter = Segmenter()
    segmenter.set_image(data.astronaut())
    for annotation in found:
        masks, _, _ = segmenter.predict(annotation["prompt"]["point_coords"], [1])
        mask = from_rle(annotation["segmentation"])
        assert max(mask_iou(mask, other) for other in masks) >= 0.99
    page.click("#clear")
    page.click("#everything")
    page.wait_for_function("document.getElementById('everything').textContent === 'Stop'")
    page.click("#everything")
    page.wait_for_function("document.getElementById('everything').textContent === 'Everything'")
    click(page, 0.5, 0.5)
    assert page.locator("#list li").count() >= 1


def test_paste_and_drop(page):
    for name in ("paste", "drop"):
        page.evaluate(
            """async (name) => {
                const blob = await (await fetch('photo.jpg')).blob();
                const transfer = new DataTransfer();
                transfer.items.add(new File([blob], `${name}.jpg`, { type: 'image/jpeg' }));
                const options = { bubbles: true, clipboardData: transfer, dataTransfer: transfer };
                const kind = name === 'paste' ? ClipboardEvent : DragEvent;
                document.body.dispatchEvent(new kind(name, options));
            }""",
            name,
        )
        wait(page)
        click(page, 0.5, 0.3)
        assert json.loads(save(page, "json"))["images"][0]["file_name"] == f"{name}.jpg"


def test_a_finger_adds_and_removes(browser, address):
    with open_page(browser, address, has_touch=True) as page:
        show(page, png(data.coffee()))
        page.touchscreen.tap(*place(page, 0.5, 0.5))
        wait(page)
        page.locator("#tools input[value=remove]").check(force=True)
        page.touchscreen.tap(*place(page, 0.1, 0.1))
        wait(page)
        assert annotations(page)[0]["prompt"]["point_labels"] == [1, 0]


BAD = {
    "text.jpg": (b"This is no picture.\n" * 9, "not a picture"),
    "empty.png": (b"", "is empty"),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(200), "HEIC"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "SVG"),
    "cut.png": (png(data.coffee())[:900], "damaged"),
}


def test_what_is_no_photograph_is_named(page):
    show(page, png(data.coffee()))
    for name, (content, text) in BAD.items():
        give(page, content, name)
        wait(page)
        message = page.inner_text("#message")
        assert name in message
        assert text in message
    click(page, 0.5, 0.5)  # the photograph before is still there
    assert len(annotations(page)) == 1
    page.errors.clear()


def test_fifty_megapixels(page):
    pixels = np.asarray(Image.fromarray(data.coffee()).resize((8660, 5774)))
    show(page, png(pixels[::1]))
    click(page, 0.5, 0.5)
    (annotation,) = annotations(page)
    segmenter = Segmenter()
    segmenter.set_image(pixels)
    mask = from_rle(annotation["segmentation"])
    assert mask_iou(mask, runtime_mask(segmenter, annotation["prompt"])) >= 0.99


def test_one_thread_without_isolation(browser, site):
    """Over plain http from another machine: no service worker, no shared memory, no crypto.subtle."""
    server = Server(site)
    address = server.address.replace("127.0.0.1", ELSEWHERE)
    with open_page(browser, address) as page:
        assert page.inner_text("#engine") == "WebAssembly, 1 thread"
        page.click("#engine")
        assert "isolated" in page.inner_text("#about")
        page.click("#proof button")
        show(page, png(data.coffee()))
        click(page, 0.5, 0.5)
        assert len(annotations(page)) == 1
        assert page.errors == []
    server.stop()


def test_without_webassembly_it_says_so(browser, address):
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        context.route(
            "**/worker/network.js",
            lambda route: route.fulfill(
                response=(answer := route.fetch()), body=answer.text() + "\ndelete self.WebAssembly;"
            ),
        )
        page.goto(address)
        page.wait_for_selector("#engine.bad", timeout=TIMEOUT)
        assert "no WebAssembly" in page.inner_text("#message")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["encoder.onnx", "golden.npz", "onnxruntime/ort-wasm-simd-threaded.wasm.packed"]
)
def test_a_damaged_file_is_refused(browser, site, tmp_path, name):
    shutil.copytree(site, tmp_path / "site")
    flip(tmp_path / "site" / name)
    server = Server(tmp_path / "site")
    with open_page(browser, server.address, is_ready=False) as page:
        page.wait_for_selector("#engine.bad")
        assert name in page.inner_text("#message")
        assert "sha256" in page.inner_text("#message")
    server.stop()


def test_other_masks_are_shown_in_red(browser, site, tmp_path):
    """Golden vectors of another network, with the right hash: this browser then computes otherwise."""
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    for key in arrays:
        if key.endswith("low_res_masks"):
            arrays[key] = arrays[key][..., ::-1]
    np.savez_compressed(folder / "golden.npz", **arrays)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["golden"]["sha256"] = describe_file(folder / "golden.npz").sha256
    (folder / "manifest.json").write_text(json.dumps(manifest))
    server = Server(folder)
    with open_page(browser, server.address) as page:
        assert page.locator("#engine.bad").count() == 1
        page.click("#engine")
        assert page.inner_text("#verdict").startswith("No")
        assert page.locator("#figures td.bad").count() == 4
    server.stop()


def test_full_storage_is_said_and_costs_only_offline_use(browser, site):
    server = Server(site)
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        session = context.new_cdp_session(page)
        origin = server.address.rstrip("/")
        session.send("Storage.overrideQuotaForOrigin", {"origin": origin, "quotaSize": 2_000_000})
        page.goto(server.address)
        page.wait_for_selector(READY, timeout=TIMEOUT)
        page.wait_for_selector("html[data-offline=no]", state="attached", timeout=TIMEOUT)
        assert "storage" in page.inner_text("#message")
        show(page, png(data.coffee()))
        click(page, 0.5, 0.5)
        assert len(annotations(page)) == 1
    server.stop()


def test_memory_stays_over_fifty_photographs(page):
    photo = png(data.coffee())
    sizes = []
    for number in range(50):
        show(page, photo, f"{number}.png")
        click(page, 0.5, 0.5)
        if number in (9, 49):
            measured = page.evaluate(
                "async () => (await performance.measureUserAgentSpecificMemory()).bytes"
            )
            sizes.append(measured)
    assert sizes[1] < sizes[0] + 40_000_000


def test_resizing_is_pillows_to_the_byte(page):
    generator = np.random.default_rng(5)
    for (height, width), side in (
        ((70, 101), 64),
        ((33, 47), 64),
        ((64, 64), 64),
        ((1, 300), 64),
        ((210, 40), 128),
    ):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        got = page.evaluate(
            """async ([rgb, width, height, side]) => {
                const { resizePixels } = await import('./worker/picture.js');
                const out = resizePixels(Uint8Array.from(rgb), width, height, side);
                return [out.width, out.height, Array.from(out.rgb)];
            }""",
            [pixels.ravel().tolist(), width, height, side],
        )
        size = (got[0], got[1])
        expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        difference = np.abs(np.array(got[2]) - expected.ravel())
        # of narrow pictures Pillow 13 scales the columns first, which rounds otherwise
        assert difference.max() <= (1 if height > 3 * width else 0)


def test_run_lengths_and_hashes_are_the_standard_ones(page):
    generator = np.random.default_rng(6)
    for shape in ((1, 1), (7, 3), (40, 60)):
        mask = generator.random(shape) < 0.4
        got = page.evaluate(
            """async ([mask, width, height]) => {
                const { encodeRle } = await import('./worker/masks.js');
                return encodeRle(Uint8Array.from(mask), width, height);
            }""",
            [mask.ravel().astype(int).tolist(), shape[1], shape[0]],
        )
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert got == {"size": list(shape), "counts": expected["counts"].decode()}
    for length in (0, 1, 55, 56, 63, 64, 1000):
        content = bytes(range(256)) * 4
        got = page.evaluate(
            """async (bytes) => {
                const { sha256 } = await import('./worker/files.js');
                return Array.from(sha256(Uint8Array.from(bytes)));
            }""",
            list(content[:length]),
        )
        assert bytes(got) == hashlib.sha256(content[:length]).digest()


@pytest.fixture(scope="module")
def gpu(playwright):
    """Chromium with WebGPU in software (SwiftShader): right, and very slow."""
    flags = [
        "--no-sandbox",
        "--enable-unsafe-webgpu",
        "--use-webgpu-adapter=swiftshader",
        "--enable-features=Vulkan",
    ]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def small_site(tmp_path_factory):
    """The page with a canvas of 64 pixels, since a GPU in software takes minutes for 512."""
    folder = tmp_path_factory.mktemp("small") / "site"
    export("default", folder, target="web", image_size=64, accept="lossy")
    return folder


def kill_gpu_process() -> int:
    """Kills the process that computes for WebGPU, as a crash of a driver does; returns how many."""
    killed = 0
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = process.read_bytes()
            if b"--type=gpu-process" in command and b"swiftshader" in command:
                os.kill(int(process.parent.name), signal.SIGKILL)
                killed += 1
    return killed


def test_webgpu_and_what_follows_when_it_is_lost(gpu, small_site):
    server = Server(small_site)
    with open_page(gpu, f"{server.address}?engine=webgpu") as page:
        assert page.inner_text("#engine") == "WebGPU"
        show(page, png(data.coffee()))
        click(page, 0.5, 0.5)
        (annotation,) = annotations(page)
        segmenter = Segmenter(small_site)
        segmenter.set_image(data.coffee())
        mask = from_rle(annotation["segmentation"])
        assert mask_iou(mask, runtime_mask(segmenter, annotation["prompt"])) >= 0.99
        assert kill_gpu_process()
        click(page, 0.4, 0.6)
        assert page.inner_text("#engine").startswith("WebAssembly")
        assert "WebGPU stopped" in page.inner_text("#message")
        assert annotations(page)[0]["prompt"]["point_labels"] == [1, 1]
    server.stop()
