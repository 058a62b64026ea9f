"""Parses an HTML page for the tests: tags, ids, links, event handlers, and elements that are not closed."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect", "circle", "line"}


class Outline(HTMLParser):
    """The outline of a document. open: elements that were not closed; broken: end tags without a matching start tag."""

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
        """The outline of ``page``."""
        outline = cls()
        outline.feed(page)
        return outline
