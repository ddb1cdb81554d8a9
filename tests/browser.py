"""Chromium without a window, driven through its DevTools protocol over two pipes: no other package is needed.

Source: chromedevtools.github.io/devtools-protocol; messages are JSON, each ended by a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless=new --no-sandbox --remote-debugging-pipe --no-first-run --disable-extensions "
    "--hide-scrollbars --disable-background-networking --disable-dev-shm-usage --use-angle=swiftshader "
    "--enable-unsafe-swiftshader"
)


class Browser:
    """One page. `problems` collects errors and warnings of its console, exceptions, requests that failed."""

    def __init__(self, width=1280, height=900, seconds=120.0):
        self.problems, self.seconds = [], seconds
        self._number, self._rest, self._loaded = 0, b"", False
        self._home = tempfile.mkdtemp()
        ours, theirs = os.pipe(), os.pipe()  # it reads from descriptor 3 and writes to 4
        shell = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        command = [
            CHROMIUM,
            *OPTIONS.split(),
            f"--user-data-dir={self._home}",
            f"--window-size={width},{height}",
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, *command, "about:blank"],
            pass_fds=(ours[0], theirs[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from = ours[1], theirs[0]
        self._session = None
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._to)
        self._process.kill()
        self._process.wait()
        os.close(self._from)
        shutil.rmtree(self._home, ignore_errors=True)

    def open(self, path):
        """Load a file and wait until it is there."""
        self._loaded = False
        self._call("Page.navigate", url=Path(path).resolve().as_uri())
        self._until(lambda: self._loaded, "the page to load")

    def run(self, code):
        """The value of an expression; of a promise what it comes to."""
        answer = self._call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"].get("exception", answer)["description"])
        return answer["result"].get("value")

    def wait(self, code):
        """Until an expression is true."""
        self._until(lambda: self.run(code), code)

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def resize(self, width, height):
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, on=True):
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path, whole=True):
        """A screenshot as PNG; whole: all of the page."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def _until(self, met, what):
        end = time.monotonic() + self.seconds
        while not met():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {self.seconds} s for {what}; problems: {self.problems}")
            self._read(0.02)

    def _call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            for answer in self._read(0.5):
                if answer.get("id") == self._number:
                    assert "error" not in answer, answer["error"]
                    return answer["result"]
        raise TimeoutError(f"no answer to {method} within {self.seconds} s")

    def _read(self, seconds):
        """The messages that have come; events are taken note of."""
        if not select.select([self._from], [], [], seconds)[0]:
            return []
        part = os.read(self._from, 1 << 20)
        assert part, "the browser has ended"
        *whole, self._rest = (self._rest + part).split(b"\0")
        messages = [json.loads(text) for text in whole]
        for message in messages:
            self._note(message.get("method"), message.get("params", {}))
        return messages

    def _note(self, event, about):
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(about["exceptionDetails"].get("exception", about)))
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in about["args"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.problems.append(about["entry"]["text"])
        elif event == "Network.loadingFailed":
            self.problems.append(f"request failed: {about.get('errorText')} {about.get('blockedReason', '')}")
