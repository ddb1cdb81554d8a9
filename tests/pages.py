"""Pages read back with the standard library alone."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Elements of an HTML file as (name, attributes, text inside). It fails where tags are not closed in
    order, an id comes twice, or a script is not one that the policy of the page allows."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert not self._open
        ids = [a["id"] for _, a, _ in self.elements if "id" in a]
        assert len(set(ids)) == len(ids)
        self.title = self.texts("title")[0]

    @classmethod
    def read(cls, path):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>\n<html")
        page = cls(text)
        page.check_scripts()
        return page

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def all(self, tag, **wanted):
        wanted = {k.rstrip("_").replace("_", "-"): v for k, v in wanted.items()}
        return [e for e in self.elements if e[0] == tag and wanted.items() <= e[1].items()]

    def texts(self, tag, **wanted):
        return [text for _, _, text in self.all(tag, **wanted)]

    def data(self, identifier):
        return json.loads(self.texts("script", id=identifier)[0])

    def file(self, identifier):
        return gzip.decompress(base64.b64decode(self.texts("script", id=identifier)[0]))

    def check_scripts(self):
        """Nothing runs but what the policy names, and nothing comes from elsewhere."""
        (policy,) = (e[1]["content"] for e in self.all("meta", http_equiv="Content-Security-Policy"))
        assert policy.startswith("default-src 'none'; ")
        code = [text for _, a, text in self.all("script") if "type" not in a]
        hashes = {base64.b64encode(hashlib.sha256(c.encode()).digest()).decode() for c in code}
        assert set(re.findall(r"'sha256-([^']*)'", policy)) == hashes
        for tag, attributes, _ in self.elements:
            assert not [k for k in attributes if k.startswith("on")], (tag, attributes)
            assert (
                attributes.get("src", "data:").startswith("data:image/jpeg;base64,")
                or "src" not in attributes
            )
            assert tag not in ("link", "iframe", "object", "embed", "base", "form")
