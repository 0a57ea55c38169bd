"""The report in a real browser: no console messages, no sideways scrolling, a reader that answers.

Skipped where chromium is not on the PATH. The page's own policy lets no other script run, so the
copy that is tested allows one more: the probe, by its hash.
"""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess

import pytest

from rpt import report_data, report_html, scaling_points
from tests.rpt import report_fixture

_CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(
        _CHROMIUM is None, reason="no chromium on the PATH (Debian: apt install chromium)"
    ),
]

_PROBE = """
(() => {
  const press = (key) => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const visible = (selector) => [...document.querySelectorAll(selector)]
    .filter((element) => element.getClientRects().length > 0);
  const shown = () => visible(".group").map((group) => group.id).join();
  const wide = [...document.querySelectorAll("body *")].filter((element) =>
    !element.closest(".scroll") && element.getBoundingClientRect().right > innerWidth + 0.5);
  const found = {
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    wide: wide.map((element) => element.outerHTML.slice(0, 120)),
    title: document.title,
    images: document.images.length,
    paper: getComputedStyle(document.body).backgroundColor,
    small: visible("p, td, li, svg text").filter((element) => {
      const scale = element.ownerSVGElement
        ? element.ownerSVGElement.getBoundingClientRect().width / 380 : 1;
      return parseFloat(getComputedStyle(element).fontSize) * scale < 9.5;
    }).length,
    documents: visible(".document").length,
    groups: [shown()],
  };
  visible(".cut")[0].focus();
  document.activeElement.click();
  found.groups.push(shown());
  press("ArrowRight");
  found.groups.push(shown());
  press("[");
  found.groups.push(shown());
  const choice = document.querySelector("#choice");
  choice.selectedIndex = 0;
  choice.dispatchEvent(new Event("change"));
  found.groups.push(shown());
  dispatchEvent(new Event("beforeprint"));
  found.printed = visible(".group").length;
  dispatchEvent(new Event("afterprint"));
  found.groups.push(shown());
  found.pageAfter = document.documentElement.scrollWidth;
  parent.postMessage(JSON.stringify(found), "*");
})();
"""

# A window is at least 500 pixels wide, a frame as narrow as a phone.
_FRAME = """<!doctype html><meta charset="utf-8"><body>
<script>
addEventListener("message", (event) => {
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = event.data;
  document.body.append(out);
});
</script>
<iframe src="{page}" style="width: {width}px; height: 900px; border: 0"></iframe>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page with every section, and the probe in it."""
    root = tmp_path_factory.mktemp("browser") / "mini"
    report_fixture.seeds(root, 2, scaling=True)
    gathered = report_data.gather(root)
    points = [point for point in gathered.points if point.measure.endswith("with a thought")]
    studies = [scaling_points.study(points, with_stage0=False, resamples=4)]
    path = root / "report.html"
    path.write_text(report_html.page(gathered, studies))
    return probed(path, _PROBE)


def probed(path, script: str):
    """A copy of the page that runs one more script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = path.read_text().replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    copy = path.with_name(f"probed-{digest[:6].replace('/', '_')}.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return copy


def browse(path, width: int, dark: bool, profile) -> tuple[str, list[str]]:
    """The frame's document after all scripts, and what the console said."""
    frame = profile / "frame.html"
    frame.write_text(_FRAME.replace("{page}", path.as_uri()).replace("{width}", str(width)))
    done = subprocess.run(
        [
            str(_CHROMIUM),
            "--headless",
            # A page that this very test has written; in a container there is no sandbox to be had.
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--hide-scrollbars",
            "--window-size=1500,950",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--enable-logging=stderr",
            "--virtual-time-budget=1000",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_and_answers(page, tmp_path, width, dark):
    document, console = browse(page, width, dark, tmp_path)
    assert console == []
    (text,) = re.findall(r'<pre id="probe">(.*?)</pre>', document)
    found = json.loads(html.unescape(text))
    assert found["width"] == width
    assert found["page"] == found["pageAfter"] == width
    assert found["wide"] == []
    assert found["small"] == 0
    # Nothing of what the thoughts hold has run.
    assert (found["title"], found["images"]) == ("Experiment mini", 0)
    red, green, blue = (int(part) for part in re.findall(r"\d+", found["paper"])[:3])
    assert (max(red, green, blue) < 60) == dark
    # One document and one group at a time; a click, the arrows, a key and the list choose.
    assert found["documents"] == 1
    opened, clicked, right, before, first, after = found["groups"]
    assert opened.startswith("doc5-")  # the last one
    assert (clicked, right) == ("doc5-0", "doc5-1")
    assert before.startswith("doc4-")
    assert first.startswith("doc0-")
    assert found["printed"] == 12
    assert after == first


def test_a_message_of_the_console_would_be_seen(page, tmp_path):
    _, console = browse(probed(page, "console.error('told')"), 1440, False, tmp_path)
    assert len(console) == 1
    assert "told" in console[0]
