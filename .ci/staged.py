"""What Quarto needs of the staged copy and smalldocs forgives, checked without either.

`faults(folder)` lists what is wrong, one sentence each. `.ci/site.py` stops at the
first list that is not empty, so that both renderers can build every copy it renders.
"""

import html.parser
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

FENCE = re.compile(r"^\s{0,3}(`{3,}|~{3,})\s*(.*?)\s*$")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*(?:\{([^{}]*)\})?\s*$")
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
FAR = re.compile(r"^(?:https?:)?//")
FAR_STYLE = re.compile(
    r"(?:@import\s+|url\()\s*(?:url\()?[\"']?((?:https?:)?//[^\"')\s]+)"
)
FAR_SCRIPT = re.compile(
    r"\b(?:import|from|fetch|importScripts)\b[\s(]*[\"'](https?://[^\"']+)"
)
REFERENCE = re.compile(
    r"(?<![\w`/.])@(?:fig|tbl|sec|eq|lst)-[\w-]+|\[-?@[A-Za-z][\w:.-]*"
)
ESCAPED_PIPE = re.compile(r"^\|.*`[^`\n]*\\\|[^`\n]*`", re.M)
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "embed": "src",
}


class Markup(html.parser.HTMLParser):
    """Links, ids, and what is loaded from another host, in a piece of HTML."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.far = [], [], []
        self.inside = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        values = dict(attributes)
        self.ids += [values[key] for key in ("id", "name") if values.get(key)]
        if tag in ("input", "select", "meta"):  # the name of a field is no anchor
            self.ids = [name for name in self.ids if name != values.get("name")]
        if tag in ("a", "area") and values.get("href"):
            self.links.append(values["href"])
        loaded = values.get("href") if tag == "link" else values.get(LOADS.get(tag))
        if loaded and FAR.match(loaded):
            self.far.append(loaded)
        elif loaded and tag != "link" and not loaded.startswith("data:"):
            self.links.append(loaded)
        self.far += FAR_STYLE.findall(values.get("style") or "")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "style":
            self.far += FAR_STYLE.findall(data)
        if self.inside == "script":
            self.far += FAR_SCRIPT.findall(data)


def split_markdown(text):
    """Split a Markdown text: prose, HTML of raw blocks, names of fences."""
    prose, raw, names, fence, keep = [], [], [], None, False
    for line in text.split("\n"):
        found = FENCE.match(line)
        if fence is None and found:
            fence, keep = found[1], found[2] == "{=html}"
            names.append(found[2])
            prose.append("")
        elif fence and found and found[1].startswith(fence) and not found[2]:
            fence = None
        elif fence is None:
            prose.append(line)
        elif keep:
            raw.append(line)
    return "\n".join(prose), "\n".join(raw), names


def slug(heading):
    """The id that pandoc gives to a heading."""
    words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    words = re.sub(r"<[^>]+>|[`*]", "", words)
    words = re.sub(r"[^\w\s.-]", "", words.lower())
    words = re.sub(r"\s+", "-", words.strip())
    return re.sub(r"^[\W\d_]+", "", words) or "section"


class Page:
    """A staged page: what it links to, what can be linked to, and what it loads."""

    def __init__(self, folder, path):
        self.path, self.name = path, str(path.relative_to(folder))
        self.faults, self.links, self.far, self.anchors = [], [], [], []
        self.headings = {}
        if path.suffix == ".ipynb":
            self.read_notebook(json.loads(path.read_text()))
        else:
            text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(), flags=re.S)
            self.read_markdown(text, "text")

    def read_notebook(self, notebook):
        language = notebook["metadata"].get("kernelspec", {}).get("language")
        if language != "python":
            self.add(
                f"kernelspec: got language {language}, expected python; "
                "name it in the notebook's metadata"
            )
        for number, cell in enumerate(notebook["cells"]):
            where = f"cell {number}"
            self.check_lines(where, cell["source"])
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                self.read_markdown(source, where)
            if number == 0 and cell["cell_type"] == "raw":
                self.check_front_matter(source)
            for output in cell.get("outputs", []):
                self.read_output(output, where)
        self.check_ids([cell.get("id") for cell in notebook["cells"]])

    def add(self, sentence):
        self.faults.append(f"{self.name} {sentence}")

    def check_lines(self, where, source):
        """Quarto glues the lines of a source that is one string."""
        expected = "expected a list of lines; stage it with splitlines(keepends=True)"
        if isinstance(source, str):
            self.add(f"{where} source: got one string, {expected}")
            return
        ended = all(line.endswith("\n") for line in source[:-1])
        if not ended or any("\n" in line[:-1] for line in source):
            self.add(f"{where} source: got lines without their ends, {expected}")

    def check_front_matter(self, source):
        front = yaml.safe_load(source.strip().strip("-")) or {}
        if "image" in front:
            self.add(
                f"image: got {front['image']}, expected none; "
                "take it out, so that a link to the page shows the card"
            )

    def read_output(self, output, where):
        data = output.get("data", {})
        for kind in ("text/html", "image/svg+xml", "application/javascript"):
            if kind in data:
                self.add(
                    f"{where} output: got {kind}, expected text/markdown with a raw "
                    "block; stage it so, or Quarto loads scripts from another host "
                    "(HTML) or takes the page's colors away (a drawing)"
                )
        if "text/markdown" in data:
            self.read_markdown("".join(data["text/markdown"]), where)

    def read_markdown(self, text, where):
        prose, raw, fences = split_markdown(text)
        for name in fences:
            if re.match(r"\{(?:mermaid|ojs|dot)\b", name):
                self.add(
                    f"{where}: got {name}, expected a stored drawing; "
                    "draw it in a cell, or the page loads scripts"
                )
        for row in ESCAPED_PIPE.findall(prose):
            self.add(
                f"{where}: got an escaped pipe in {row[-40:]!r}, expected &#124; in "
                "<code>; stage it so, or pandoc prints the backslash"
            )
        plain = re.sub(r"`[^`\n]*`", "code", prose)
        for found in REFERENCE.findall(plain):
            self.add(
                f"{where}: got {found}, expected a link; "
                "write one, smalldocs knows no references by key"
            )
        for picture, target in LINK.findall(prose):
            known = self.far if picture and FAR.match(target) else self.links
            known.append(target)
        for markup in (Markup(plain), Markup(raw)):
            self.links += markup.links
            self.far += markup.far
            self.anchors += markup.ids
        self.anchors += re.findall(r"\{[^{}\n]*#([\w.-]+)[^{}\n]*\}", plain)
        titled = False
        for line in prose.split("\n"):
            if line.startswith(":::"):
                titled = ".callout" in line
            found = HEADING.match(line)
            if (
                found and titled
            ):  # the first heading of a note is its title, without an id
                titled = False
            elif found and "#" not in (found[2] or ""):
                self.add_heading(found[1])

    def add_heading(self, words):
        name = slug(words)
        before = self.headings.setdefault(name, [])
        if before and words not in before:
            self.add(
                f"heading {words}: got #{name}, the id of {before[0]}, expected an id "
                f"of its own; write one behind it, {{#{name}-class}}"
            )
        self.anchors.append(f"{name}-{len(before)}" if before else name)
        before.append(words)

    def check_ids(self, cells):
        seen = set()
        for name in [*self.anchors, *cells]:
            if name in seen:
                self.add(
                    f"id {name}: got more than one, expected one; "
                    "give the cell or the element another id"
                )
            seen.add(name)


def lack(folder, page, link, pages):
    """What a link lacks: its file, its anchor, or nothing.

    A link that begins with / starts at the top of the site.
    """
    url = urlsplit(link)
    if url.scheme or url.netloc or not (url.path or url.fragment):
        return None
    target = page.path
    if url.path:
        start = folder if url.path.startswith("/") else page.path.parent
        target = (start / unquote(url.path).lstrip("/")).resolve()
    if target.suffix == ".html":
        sources = (target.with_suffix(kind) for kind in (".ipynb", ".md"))
        target = next((source for source in sources if source in pages), target)
    if not target.exists():
        return "a file"
    anchors = pages[target].anchors if target in pages else []
    if url.fragment and target in pages and unquote(url.fragment) not in anchors:
        return "an anchor"
    return None


def config_faults(folder):
    """List what the site's configuration must say and does not."""
    website = yaml.safe_load((folder / "_quarto.yml").read_text())["website"]
    for key in ("open-graph", "twitter-card"):
        value = website.get(key)
        image = value.get("image") if isinstance(value, dict) else None
        if image != "/card.png" or not (folder / "card.png").exists():
            yield (
                f"_quarto.yml {key}: got {image}, expected image: /card.png; "
                "write it, or Quarto takes the first picture of each page"
            )
    address = str(website.get("site-url"))
    if not address.startswith("https://"):
        yield (
            f"_quarto.yml site-url: got {address}, expected an address; "
            "write it, or the card has none"
        )
    entries = website["sidebar"]["contents"] + website["navbar"].get("right", [])
    for entry in entries:  # which grows by what each of its sections holds
        entries += entry.get("contents", [])
    links = [entry["href"] for entry in entries if "href" in entry]
    for link in links:
        if not FAR.match(link) and not (folder / link).exists():
            yield f"_quarto.yml {link}: got no file, expected a page; mend the name"
        if links.count(link) > 1:
            yield (
                f"_quarto.yml {link}: got two entries, expected one; "
                "take one out, or Quarto marks it on every page as the open one"
            )


def faults(folder):
    """List everything in the staged copy that one of the renderers does not forgive."""
    folder = Path(folder).resolve()
    files = [path for kind in ("*.ipynb", "*.md") for path in folder.rglob(kind)]
    pages = {path: Page(folder, path) for path in sorted(files)}
    loaded = {page.name: page.far for page in pages.values()}
    for path in folder.rglob("*.css"):
        name = str(path.relative_to(folder))
        loaded[name] = FAR_STYLE.findall(path.read_text())
    for path in folder.rglob("*.html"):
        loaded[str(path.relative_to(folder))] = Markup(path.read_text()).far
    found = list(config_faults(folder))
    for page in pages.values():
        found += page.faults
        for link in page.links:
            if missing := lack(folder, page, link, pages):
                found.append(
                    f"{page.name} {link}: got no such target, expected {missing}; "
                    "mend the link, or stage what it names"
                )
    for name, addresses in loaded.items():
        for address in addresses:
            found.append(
                f"{name}: got {address}, expected nothing from another host; "
                "store it in the project"
            )
    return list(dict.fromkeys(found))
