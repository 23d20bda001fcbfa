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
const middle = (canvas) =>
  [...canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data];
"""


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
    assert "</body>" in text
    ends = f"""<script>
    window.addEventListener("load", async () => {{
      {TOOLS}
      const broken = [];
      for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"])
        window.addEventListener(kind, (event) => broken.push(kind + ": " + (event.message || event.blockedURI)));
      let value;
      try {{ value = await (async () => {{ {script} }})(); }} catch (error) {{ broken.push(String(error)); }}
      const asked = performance.getEntriesByType("resource").map((entry) => entry.name);
      const told = document.createElement("pre");
      told.id = "told";
      told.textContent = JSON.stringify({{ value, broken, asked }});
      document.body.append(told);
    }});
    </script></body>"""
    copy, log = folder / "page.html", folder / "net.json"
    copy.write_text(text.replace("</body>", ends), "utf-8")
    done = subprocess.run(
        [
            chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", "--disable-background-networking",
            "--disable-component-update", "--no-first-run", f"--log-net-log={log}",
            f"--window-size={width},900", "--virtual-time-budget=20000", "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the script told nothing: {done.stdout[-500:]} {done.stderr[-500:]}"
    told = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert told["broken"] == []
    # What the page asked for, but for its own data, and all that the browser sent for it.
    urls = set(re.findall(r'"url":"((?:https?|wss?)://[^"]+)"', log.read_text("utf-8")))
    pages = [name for name in told["asked"] if not name.startswith("data:")]
    return told["value"], sorted({*pages, *urls})
