"""A real browser that opens a page, does what a script says, and tells what there was to see."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

# What scripts of tests are made of. Events are dispatched to the page's own elements.
TOOLS = """
const at = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const press = (element, key) =>
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const slide = (element, value) => {
  element.value = value;
  element.dispatchEvent(new Event("input", { bubbles: true }));
};
const touch = (element, kind, x, y) => {
  const box = element.getBoundingClientRect();
  element.dispatchEvent(new PointerEvent(kind, {
    clientX: box.left + x * box.width, clientY: box.top + y * box.height,
    pointerId: 1, pointerType: "touch", isPrimary: true, buttons: kind === "pointerup" ? 0 : 1,
    bubbles: true, cancelable: true,
  }));
};
// Only pointers of a real hand can be captured.
Element.prototype.setPointerCapture = () => {};
const colour = (canvas) => {
  const pixel = canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1);
  return [...pixel.data].slice(0, 3);
};
"""

# What goes wrong on a page, from its first line on.
WATCH = """<head><script>
  window.broken = [];
  for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"])
    window.addEventListener(kind, (event) =>
      broken.push(kind + ": " + (event.message || event.reason || event.blockedURI)));
</script>"""


def chromium() -> str:
    """Return the browser's path; fail, never skip, where it is missing."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "these tests need a browser: apt-get install chromium"
    return found


def run(page: Path, script: str, folder: Path, *, width: int = 1000) -> tuple[Any, list[str]]:
    """Open a page, and return what a script returns there, and what was asked of the network.

    The script is the body of an async function. Time is virtual: waiting takes none.
    """
    text = page.read_text("utf-8")
    assert text.count("<head>") == text.count("</body>") == 1
    ends = f"""<script>
    window.addEventListener("load", async () => {{
      {TOOLS}
      let value = null;
      try {{ value = await (async () => {{ {script} }})() ?? null; }}
      catch (error) {{ broken.push(String(error)); }}
      const asked = performance.getEntriesByType("resource").map((entry) => entry.name)
        .filter((name) => !name.startsWith("data:"));
      const told = document.createElement("pre");
      told.id = "told";
      told.textContent = JSON.stringify({{ value, broken, asked }});
      document.body.append(told);
    }});
    </script></body>"""
    copy, log = folder / "page.html", folder / "net.json"
    copy.write_text(text.replace("<head>", WATCH).replace("</body>", ends), "utf-8")
    done = subprocess.run(
        [
            chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--no-first-run", f"--log-net-log={log}",
            f"--window-size={width},900", "--virtual-time-budget=20000", "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the script told nothing: {done.stdout[-500:]} {done.stderr[-500:]}"
    told = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert told["broken"] == []
    return told["value"], sorted({*told["asked"], *sent(log)} - {copy.as_uri()})


def sent(log: Path) -> set[str]:
    """Return what was requested for a page, by the browser's own log, but for data in the page.

    The browser asks for updates of itself as well; those requests have no page as initiator.
    """
    events = json.loads(log.read_text("utf-8"))["events"]
    requests = [event["params"] for event in events if "initiator" in event.get("params", {})]
    pages = [request for request in requests if request["initiator"] != "not an origin"]
    return {request["url"] for request in pages if "url" in request}
