"""A page as a strict reader sees it: its tags, whether they close, its words, what it loads."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "hr", "input"}
LOADS = ("src", "href", "srcset", "data", "poster", "action", "background", "xlink:href")


class Page(HTMLParser):
    """Parses ``text``; ``faults`` are tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.loads: list[str] = []
        self.faults: list[str] = []
        self.words: list[str] = []
        self.style = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> stays open" for tag in self._open]

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        self.loads += [attributes[name] for name in LOADS if name in attributes]
        self.style += attributes.get("style", "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self._open[-1:]}")
        else:
            self._open.pop()

    def handle_data(self, data):
        if self._open[-1:] == ["style"]:
            self.style += data
        elif data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return "\n".join(self.words)

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.tags)

    def of_class(self, css: str) -> list[dict[str, str]]:
        return [found for _, found in self.tags if css in found.get("class", "").split()]
