"""A real TensorBoard on this machine, and what can be seen in its pages."""

import json
import re
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

from tests.browser import waited

# TensorBoard's pages are trees of shadow roots, which no selector reaches into.
SEEN = """
const found = [];
const walk = (root, inside) => {
    for (const element of root.querySelectorAll("*")) {
        const within = inside || element.closest(arguments[0]) !== null;
        if (element.matches(arguments[1]) && within && element.getClientRects().length) found.push(element);
        if (element.shadowRoot) walk(element.shadowRoot, within);
    }
};
walk(document, false);
return found.map(element => arguments[2].reduce((value, key) => value && value[key], element));
"""
TEXT = """
const read = node => {
    if (node.nodeType === Node.TEXT_NODE) return node.textContent;
    if (["STYLE", "SCRIPT", "TEMPLATE"].includes(node.tagName)) return "";
    return [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].map(read).join(" ");
};
return read(document.body).replace(/\\s+/g, " ");
"""


@contextmanager
def tensorboard(logdir, *options):
    """Its address, once it has read what is there."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    printed = logdir.parent / "tensorboard.log"
    with printed.open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", "0", "--reload_interval", "1", *options], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            found = waited(
                lambda: re.search(r"at (http://[\d.:]+)/", printed.read_text()), lambda match: match is not None
            )
            assert found is not None, printed.read_text()
            yield _ready(found[1], len(list(logdir.iterdir())))
        finally:
            server.terminate()
            server.wait()


def fetch(address, body=None):
    """JSON that it answers, to a question in JSON if there is one."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def seen(driver, inside, selector, *keys):
    """A property of each visible element of a kind, within elements of another kind."""
    return driver.execute_script(SEEN, inside, selector, list(keys))


def text_of(driver):
    """All text of a page."""
    return driver.execute_script(TEXT)


def _ready(address, runs):
    def number_of_runs():
        try:
            return len(fetch(f"{address}/data/runs"))
        except OSError:
            return 0

    assert waited(number_of_runs, lambda number: number >= runs) == runs
    return address
