"""What a page is made of, for the tests that hold it: tags, ids, links, handlers, and whether all that opens closes."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect", "circle", "line"}


class Outline(HTMLParser):
    """Tags, ids, links and open elements of a document."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.broken: list[str] = []
        self.sections: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src", "xlink:href", "action"):
                self.links.append(value)
            if key == "aria-labelledby" and tag == "section":
                self.sections.append(value)
            if key.startswith("on"):
                self.handlers.append(key)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in _VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)

    @classmethod
    def of(cls, page: str) -> Outline:
        found = cls()
        found.feed(page)
        return found
