"""The page in a real browser, without a network: nothing is cut off, nothing is loaded.

Skips where no Chromium is installed (Debian: apt-get install chromium).
"""

import html
import json
import re
import shutil
import subprocess

import pytest

from beamprof.report.html_report import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

# Asks the browser itself; put into a copy of the page, whose own policy forbids scripts.
MEASURE = """<script>addEventListener("load", () => {
  const box = (e) => {
    const r = e.getBoundingClientRect();
    return [r.left, r.right, r.top, r.bottom];
  };
  const ticks = [...document.querySelectorAll("svg.plot")].map(
    (svg) => [...svg.querySelectorAll("text.tick.mid")].map(box));
  const texts = [...document.querySelectorAll("svg text")].map((e) => [e.textContent, ...box(e)]);
  const plots = [...document.querySelectorAll("svg.plot")].map(box);
  parent.postMessage({ticks, texts, plots, wide: document.documentElement.scrollWidth,
    view: innerWidth, loaded: performance.getEntriesByType("resource").length}, "*");
});</script>"""
# A window cannot be as narrow as a phone, a frame can.
FRAME = """<!doctype html><title>nothing</title><script>
addEventListener("message", (said) => { document.title = JSON.stringify(said.data); });
</script><iframe src="measured.html" style="border: 0; height: 900px; width: WIDEpx"></iframe>"""


@pytest.fixture(scope="module")
def page(replayed, decision_log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    text = write_report([replayed, decision_log], folder / "r.html").path.read_text("utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (folder / "measured.html").write_text(text.replace("</body>", f"{MEASURE}</body>"), "utf-8")
    return folder / "measured.html"


def measured(page, width_px, profile):
    frame = page.with_name(f"frame{width_px}.html")
    frame.write_text(FRAME.replace("WIDE", str(width_px)))
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
            "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    return json.loads(html.unescape(title.group(1)))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("width_px", [390, 1280])
def test_it_fits_a_phone_and_a_desk_without_a_network(page, width_px, tmp_path):
    seen = measured(page, width_px, tmp_path)
    assert seen["view"] == width_px
    assert seen["wide"] <= width_px, "nothing makes the page scroll sideways"
    assert seen["loaded"] == 0
    assert len(seen["plots"]) > 20
    assert all(
        right - left > 100 and bottom - top > 20 for left, right, top, bottom in seen["plots"]
    )
    cut = [text for text, left, right, *_ in seen["texts"] if left < -0.5 or right > width_px + 0.5]
    assert cut == []
    for ticks in seen["ticks"]:
        for at, one in enumerate(ticks):
            for other in ticks[:at]:
                level = one[2] < other[3] and other[2] < one[3]
                assert not level or one[1] <= other[0] or other[1] <= one[0]
