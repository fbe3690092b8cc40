"""Times a photograph and a click in the page, headless: ``make bench-web``, or bundles of yours."""

import contextlib
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from test_web_page import CHROMIUM, Server, open_page

from pocketsam.export.to_web.site import add_page
from pocketsam.runtime.bundle import open_bundle

PHOTOGRAPHS, CLICKS = 5, 20
MEASURE = """async ([photographs, clicks]) => {
    const worker = new Worker('./worker/worker.js', { type: 'module' });
    let count = 0;
    const call = (method, argument) => new Promise((resolve, reject) => {
        const id = ++count;
        const receive = ({ data }) => {
            if (data.id !== id || data.progress) return;
            worker.removeEventListener('message', receive);
            if (data.error) reject(new Error(data.error.message));
            else resolve(data.result);
        };
        worker.addEventListener('message', receive);
        worker.postMessage({ id, method, argument });
    });
    const timed = async (run) => {
        const start = performance.now();
        await run();
        return performance.now() - start;
    };
    const wanted = new URL(location.href).searchParams.get('engine');
    await call('open', { wanted, excluded: [] });
    const blob = await (await fetch('photo.jpg')).blob();
    const times = { photograph: [], click: [] };
    for (let i = 0; i < photographs; i++) {
        times.photograph.push(await timed(() => call('encode', { blob, name: 'photo.jpg' })));
    }
    for (let i = 0; i < clicks; i++) {
        const prompt = { points: [[100 + 10 * i, 200]], labels: [1], box: null };
        times.click.push(await timed(() => call('predict', prompt)));
    }
    worker.terminate();
    return times;
}"""


def main(bundles: list[str]) -> None:
    """Prints medians in ms, from the message to the worker to its answer."""
    print(f"{'bundle':28} {'engine':24} {'photograph, ms':>15} {'click, ms':>10}")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        stack.callback(browser.close)
        for number, bundle in enumerate(bundles):
            site = folder / str(number)
            shutil.copytree(bundle, site)
            add_page(site)
            manifest = open_bundle(site).manifest
            server = Server(site)
            stack.callback(server.stop)
            for engine in ("wasm", "wasm1"):
                with open_page(browser, f"{server.address}?engine={engine}") as page:
                    name = page.inner_text("#engine")
                    times = page.evaluate(MEASURE, [PHOTOGRAPHS, CLICKS])
                medians = [statistics.median(times[what]) for what in ("photograph", "click")]
                what = f"{manifest.precision}, {manifest.image_size} px"
                print(f"{what:28} {name:24} {medians[0]:15.0f} {medians[1]:10.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
