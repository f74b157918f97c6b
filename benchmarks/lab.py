"""The lab in the page against PyTorch in eager mode, one thread each, in turns.

Updates of a net 64-64-10 on the digits by SGD, and products with the Hessian over all 1,437 images;
then how smooth the page stays while a net trains, and each bench while it runs. It needs Chromium
and its driver.
"""

import argparse
import json
import statistics
import sys
import tempfile
from itertools import product
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from selenium.webdriver.support.ui import WebDriverWait
from torch.func import functional_call, grad, jvp

from lecture6 import data, models
from lecture6.course import explorables
from lecture6.course.explorables import bundle
from lecture6.course.explorables.lab import packed
from lecture6.train import sample_batches

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests/book", "book/_ext")]
from as_in_book import in_the_book, with_modules
from browsing import chromium

GOALS = {8: 15.0, 64: 3.0, 512: 1.0}  # the page's updates over PyTorch's, by batch size
PAGE = """<!doctype html><meta charset="utf-8"><title>lab</title><script type="module">{module}
Object.assign(window, {{ Lab, digits: {digits} }});</script>"""
BENCH = """<!doctype html><meta charset="utf-8"><title>bench</title>
<link rel="stylesheet" href="explorables.css">
<main>{}</main><script src="explorables.js" defer></script>"""
WARM = """
const [done] = arguments;
Lab.open(digits).then((lab) => {
  window.lab = lab;
  return lab.net().measure("trace");
}).then(done);
"""
UPDATES = """
const [options, done] = arguments, net = lab.net();
net.train({...options, stop: {updates: 1}}).then(async () => {
  const start = performance.now();
  await net.train(options);
  done(1000 * options.stop.updates / (performance.now() - start));
  net.close();
});
"""
# With given vectors a trace is their products, and a few for its rounding.
PRODUCTS = """
const [n, done] = arguments, net = lab.net();
const probes = new Float32Array(n * net.nParams).fill(1), start = performance.now();
net.measure("trace", {probes}).then(() => done(1000 * n / (performance.now() - start)));
"""
COUNT = """
window.count = (seconds) => new Promise((resolve) => {
  let frames = 0, longest = 0, going = true;
  const observer = new PerformanceObserver((list) => {
    for (const {duration} of list.getEntries()) longest = Math.max(longest, duration);
  });
  observer.observe({type: "longtask"});
  const frame = () => { frames += 1; if (going) requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
  setTimeout(() => { going = false; resolve([frames / seconds, longest]); }, 1000 * seconds);
});
"""
SMOOTH = """
(async (place, seconds, done) => {
const lab = await Lab.open(digits, {place}), net = lab.net();
net.train({batchSize: 8, lr: 0.05}).catch(() => {});
done(await count(seconds));
lab.close();
})(...arguments);
"""
BENCHES = {
    "OneStep": {
        "samples": [[1.0, 0.5, 1.0], [-1.0, 0.25, -1.0]] * 64,
        "test": [[1.0, 0.5, 1.0]],
        "provenance": "a benchmark",
    },
    "Spectrum": {},
    "Keskar": {},
    "Scaling": {},
    "BestBatch": {},
    "Edge": {},
    "Valley": {},
}  # and what a page gives each; the others draw what they get
BUSY = """
(async (seconds, done) => {
for (const skip of document.querySelectorAll(".skip")) skip.click();
document.querySelector(".controls .buttons button:enabled").click();
done(await count(seconds));
})(...arguments);
"""


def torch_updates(images: data.Dataset, batch_size: int, n: int) -> float:
    """Updates a second of the loop that one would write."""
    model, x, y = models.mlp(64, [64], 10), images.x_train, images.y_train
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator, made = torch.Generator().manual_seed(0), 0
    start = perf_counter()
    while made < n:
        for batch in sample_batches(len(x), batch_size, generator=generator):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            made += 1
    return made / (perf_counter() - start)


def torch_products(images: data.Dataset, n: int) -> float:
    """Hessian–vector products a second by torch.func, forward over reverse."""
    model = models.mlp(64, [64], 10)
    w = {name: p.detach() for name, p in model.named_parameters()}
    v = {name: torch.ones_like(p) for name, p in w.items()}

    def loss(w):
        return F.cross_entropy(functional_call(model, w, images.x_train), images.y_train)

    start = perf_counter()
    for _ in range(n):
        jvp(grad(loss), (w,), (v,))
    return n / (perf_counter() - start)


def compare(name: str, page: list[float], eager: list[float], goal: float | None) -> None:
    ratios = [a / b for a, b in zip(page, eager, strict=True)]
    print(
        f"{name:22} {statistics.median(page):9,.0f} {statistics.median(eager):9,.0f}   "
        f"{statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        + (f"   goal {goal:g}" if goal else "")
    )


def say(what: str, rate: int, frames: float, longest: float) -> None:
    print(
        f"{what}, processor {rate} × slower: {frames:.0f} frames a second, longest task "
        f"{longest:.0f} ms (0: none over 50)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="of each side (default: 5)")
    repeats = range(parser.parse_args().repeats)
    torch.set_num_threads(1)
    images = data.load("digits")
    module = bundle("lab/lab.js")
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile") as browser:
        page = Path(folder) / "lab.html"
        page.write_text(PAGE.format(module=module, digits=json.dumps(packed("digits"))), "utf8")
        browser.set_script_timeout(600)
        browser.get(page.as_uri())
        browser.execute_async_script(WARM)
        browser.execute_script(COUNT)
        print(f"{'a second':22} {'page':>9} {'PyTorch':>9}   {'ratio':>6}")
        for batch_size, goal in GOALS.items():
            n = 40_000 // (8 + batch_size)
            options = {"batchSize": batch_size, "lr": 0.05, "evaluateEvery": 10**9}
            options["stop"] = {"updates": 10 * n}
            ours, eager = [], []
            for _ in repeats:
                ours.append(browser.execute_async_script(UPDATES, options))
                eager.append(torch_updates(images, batch_size, n))
            compare(f"updates, B = {batch_size}", ours, eager, goal)
        ours, eager = [], []
        for _ in repeats:
            ours.append(browser.execute_async_script(PRODUCTS, 100))
            eager.append(torch_products(images, 30))
        compare("Hessian products", ours, eager, None)
        for place, rate in product(("worker", "page"), (1, 6)):
            browser.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": rate})
            say(f"training in the {place}", rate, *browser.execute_async_script(SMOOTH, place, 3))
        with_modules(Path(folder))
        for (name, options), rate in product(BENCHES.items(), (1, 6)):
            html = in_the_book(getattr(explorables, name), **options)
            page.write_text(BENCH.format(html), "utf8")
            browser.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": 1})
            browser.get(page.as_uri())
            WebDriverWait(browser, 60).until(lambda b: b.find_elements("css selector", ".controls"))
            browser.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": rate})
            browser.execute_script(COUNT)
            say(name, rate, *browser.execute_async_script(BUSY, 4))


if __name__ == "__main__":
    main()
