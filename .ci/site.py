"""Build the documentation site, and README.md from nbs/index.ipynb.

    python .ci/site.py            README.md, then the site under _docs/, checked
    python .ci/site.py --quarto   the same pages, rendered by Quarto
    python .ci/site.py readme     only README.md

The notebooks are staged by nbdev: TeX becomes MathML, `04_lrn.ipynb` becomes
`lrn.ipynb`, in every folder. The staged copy is checked for what either renderer needs
(staged.py). smalldocs renders it, or Quarto where that is asked for, from one
`_quarto.yml`. Old addresses lead to the new ones (redirects.py); then all links of the
site are checked. `llms.txt` lists the pages of its sidebar.
"""

import argparse
import configparser
import html
import html.parser
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / ".ci"))  # also where this file is read by another name
redirects = importlib.import_module("redirects")
staged = importlib.import_module("staged")

REMEDIES = {
    "smalldocs": "pip install -e '.[dev]'",
    "quarto": "install it (https://quarto.org), or leave --quarto out",
}
STAGED, SITE = ROOT / "_proc", ROOT / "_docs"
SIGNATURES = (  # as nbdev writes them, and as a reader would
    (r"```python\n\n", "```python\n"),
    (r"([:)])\n\s*\n```$", r"\1\n```"),
    (r"\(\n\s*args:Any, kwargs:Any\n\)", "()"),  # a module that takes none
    (r"args:(?:VAR_POSITIONAL|Any), kwargs:(?:VAR_KEYWORD|Any)", "*args, **kwargs"),
    (r":(?:NoneType|builtin_function_or_method)=", "="),
    (r"\b__main__\.", ""),
    (r"(\ndef \w+\()\n\s*\n\)", r"\1)"),
)
DRAWING = "nbs/assets/columns.svg"
NUMBER = re.compile(  # in a link, from any folder to any other
    r"(\]\(|^\[[^\]\n]+\]: )(/?(?:[\w.-]+/)*)\d\d_(\w+\.ipynb)", re.M
)
OPEN_SOURCE = '#| code-fold: show\n#| code-summary: "Exported source"\n'
LONGEST_OPEN = 20  # lines of exported source; a longer one is folded
FIG_ALT = re.compile(r"^#\| fig-alt: (\".*\")\n", re.M)
SITE_FOLD = re.compile(r"^#\| site-fold: \"(.*)\"\n", re.M)


def text(cell):
    return "".join(cell["source"])


def readme(folder=ROOT):
    """Write README.md to a folder: the index notebook's prose, code and outputs.

    Its drawing becomes a file of its own.
    """
    parts = []
    for cell in json.loads((ROOT / "nbs/index.ipynb").read_text())["cells"]:
        source = text(cell)
        if cell["cell_type"] == "markdown":
            parts.append(from_root(source))
            continue
        if "#| hide" in source:
            continue
        if "echo: false" not in source:
            parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/svg+xml" in data:
                drawing = "".join(data["image/svg+xml"])
                (folder / DRAWING).write_text(drawing + "\n")
                alt = "The two columns of AlexNet, and which layers read both"
                parts.append(f"![{alt}]({DRAWING})")
            elif "text/markdown" in data:
                parts.append(from_root("".join(data["text/markdown"])))
            elif "text/plain" in data:
                parts.append("```\n" + "".join(data["text/plain"]) + "\n```")
    (folder / "README.md").write_text(
        "<!-- made from nbs/index.ipynb by .ci/site.py -->\n\n"
        + "\n\n".join(parts).replace("```\n\n```python\n", "")
        + "\n"
    )


def from_root(words):
    """Lead the links between notebooks from the top of the repository."""
    return re.sub(r"\]\(((?:\w+/)*\w+\.ipynb(?:#[^)\s]*)?)\)", r"](nbs/\1)", words)


def settings():
    """Read what settings.ini has about the project."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    return parser["DEFAULT"]


def address():
    """Where the site will stand: its host, and its folder there."""
    return settings()["doc_host"], settings()["doc_baseurl"]


def repository(path):
    """Return the address of a file of the repository."""
    return f"{settings()['git_url']}/blob/{settings()['branch']}/{path}"


def stage():
    """Nbdev's copy of the notebooks, as both renderers need it (see staged.py)."""
    from nbdev.serve import proc_nbs

    shutil.rmtree(STAGED, ignore_errors=True)
    proc_nbs(force=True)
    host = "".join(address())
    config = STAGED / "_quarto.yml"
    own = f"website:\n  site-url: {host}\n  page-footer:\n    left: {footer()}\n"
    config.write_text(config.read_text().replace("website:\n", own))
    notebooks = {}
    for path in list(STAGED.rglob("*.ipynb")):
        notebook = json.loads(path.read_text())
        top = "../" * (len(path.relative_to(STAGED).parts) - 1)
        notebook["cells"].insert(1, page_links(path.relative_to(STAGED)))
        notebook["cells"] = fold_marked(notebook["cells"])
        for number, cell in enumerate(notebook["cells"]):
            stage_cell(cell, number, host, top)
        path.unlink()
        notebooks[path.with_name(re.sub(r"^\d\d_", "", path.name))] = notebook
    separate_anchors(notebooks)
    for path, notebook in notebooks.items():
        path.write_text(json.dumps(notebook))


def footer():
    """Name the version, the date of its last commit, and the license, for each page."""
    command = ["git", "-C", ROOT, "log", "-1", "--format=%cs"]
    date = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    parts = [f"{settings()['lib_name']} {settings()['version']}"]
    if date:
        parts.append(date)
    parts.append(f"[{settings()['license']}]({repository('LICENSE')})")
    status = "".join(address()) + "/evidence/status.html"
    parts.append(f"[How to cite]({status}#how-to-cite)")
    return json.dumps(" · ".join(parts), ensure_ascii=False)


def page_links(name):
    """Lead from a page to its notebook, to the module it exports, and to Colab."""
    cells = json.loads((ROOT / "nbs" / name).read_text())["cells"]
    links = [f"[Notebook]({repository(f'nbs/{name.as_posix()}')})"]
    exported = re.search(
        r"^#\| default_exp ([\w.]+)$", "\n".join(map(text, cells)), re.M
    )
    if exported:
        module = f"{settings()['lib_path']}.{exported[1]}"
        file = repository(module.replace(".", "/") + ".py")
        links.append(f"[`{module}`]({file})")
    if any(cell["id"] == "colab" for cell in cells):
        github = repository(f"nbs/{name.as_posix()}").split("github.com/")[1]
        colab = f"https://colab.research.google.com/github/{github}"
        links.append(f"[Open in Colab]({colab})")
    source = "::: {.page-links}\n" + " · ".join(links) + "\n:::"
    return markdown(source)


def fold_marked(cells):
    """Fold each cell marked `#| site-fold: "TITLE"`, with its output, on the site only.

    In Jupyter, where a run shows its report, the mark is a comment.
    """
    folded = []
    for cell in cells:
        title = SITE_FOLD.search(text(cell))
        if title is None:
            folded.append(cell)
            continue
        cell["source"] = SITE_FOLD.sub("", text(cell))
        folded.append(markdown(f"<details><summary>{title[1]}</summary>"))
        folded.append(cell)
        folded.append(markdown("</details>"))
    return folded


def markdown(source):
    """A Markdown cell."""
    return dict(cell_type="markdown", id="", metadata={}, source=source)


def stage_cell(cell, number, host, top):
    """Rewrite a cell: plain names, relative links, MathML, raw blocks, lists of lines.

    Quarto makes an id of a cell's id, which is often that of the heading beside it.
    """

    def plain(words):
        words = words.replace(host + "/", top).replace(host, top)
        words = re.sub(r"(?<=\d) %(?!\w)", "\u00a0%", words)  # no line ends there
        return code_in_tables(NUMBER.sub(r"\1\2\3", words))

    source = text(cell)
    if cell["cell_type"] == "raw":
        source = re.sub(r"^output-file:.*\n", "", source, flags=re.M)
    if cell["cell_type"] == "markdown":
        source = mathml(plain(source))
    if source.startswith(OPEN_SOURCE) and source.count("\n") > LONGEST_OPEN + 2:
        source = source.replace("code-fold: show", "code-fold: true", 1)
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        for kind in ("text/markdown", "text/html"):
            if kind in data:
                words = plain("".join(data[kind]))
                for found, replacement in SIGNATURES:
                    words = re.sub(found, replacement, words)
                data[kind] = words
        if "text/html" in data:
            data["text/markdown"] = raw_block(data.pop("text/html"))
        if "image/svg+xml" in data:
            drawing = "".join(data.pop("image/svg+xml")).strip()
            data["text/markdown"] = raw_block(figure(drawing, FIG_ALT.search(source)))
            source = FIG_ALT.sub("", source)
    cell["source"] = source.splitlines(keepends=True)
    cell["id"] = f"cell-{number}"


def raw_block(markup):
    """HTML as a raw block of Markdown, to which no renderer adds anything."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", markup)), default=0))
    return f"{fence}{{=html}}\n{markup.strip()}\n{fence}\n"


def figure(drawing, alt):
    """A drawing inside the page, so that its words take the page's color."""
    if alt:
        label = html.escape(json.loads(alt[1]))
        drawing = drawing.replace("<svg ", f'<svg aria-label="{label}" ', 1)
    return f'<figure class="figure">{drawing}</figure>'


def code_in_tables(words):
    """Code with a pipe in a table's row.

    Pandoc prints the backslash before the pipe.
    """

    def spelled(found):
        code = found[1].replace("\\|", "|")
        signs = re.sub(r"[^\w\s.]", lambda m: f"&#{ord(m[0])};", code)
        return f"<code>{signs.replace('_', '&#95;')}</code>"

    def row(line):
        return re.sub(r"`([^`\n]*\\\|[^`\n]*)`", spelled, line[0])

    return re.sub(r"^\|.*\|$", row, words, flags=re.M)


def separate_anchors(notebooks):
    """Give headings that differ in case only (`lrn`, `LRN`) ids that differ in more.

    A function keeps the id that links to it have; a class and a section get another.
    """
    for path, notebook in notebooks.items():
        cells = notebook["cells"]
        documents = [
            output["data"]
            for cell in cells
            for output in cell.get("outputs", [])
            if "text/markdown" in output.get("data", {})
        ]
        prose = "\n".join(document["text/markdown"] for document in documents)
        symbols = re.findall(r"^### (\w+)$", prose, flags=re.M)
        functions = {name for name in symbols if name.islower()}

        for document in documents:
            document["text/markdown"] = separated(
                document["text/markdown"], functions, "class"
            )
        for cell in cells:
            if cell["cell_type"] == "markdown":
                words = separated(text(cell), functions, "section")
                cell["source"] = words.splitlines(keepends=True)
        for name in symbols:
            if name.lower() in functions and name not in functions:
                link_to_class(notebooks, path.with_suffix(".html"), name)


def separated(words, functions, kind):
    """Give an id to each heading that is a function's name but for its case."""

    def own(found):
        name = found[1].lower()
        if name not in functions or found[1] in functions:
            return found[0]
        return f"{found[0]} {{#{name}-{kind}}}"

    return re.sub(r"^##+ (\w+)$", own, words, flags=re.M)


def link_to_class(notebooks, page, name):
    """Let every link that shows a class's name lead to the class's own heading."""
    shown = rf"`{name}(?:\([^`]*\))?`"
    link = re.compile(rf"(\[{shown}\]\(([^)\s#]*\.html)#{name.lower()})\)")

    def rewrite(words, folder):
        def own(found):
            target = os.path.normpath(folder / found[2])
            return f"{found[1]}-class)" if target == str(page) else found[0]

        return link.sub(own, words)

    for path, notebook in notebooks.items():
        for cell in notebook["cells"]:
            words = rewrite(text(cell), path.parent)
            cell["source"] = words.splitlines(keepends=True)
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if "text/markdown" in data:
                    data["text/markdown"] = rewrite(data["text/markdown"], path.parent)


def mathml(source):
    """TeX between dollars, outside of code, becomes MathML."""
    from latex2mathml.converter import convert

    def math(tex, display):
        """Convert with TeX's gap after ln, and without gaps around max."""
        words = re.sub(
            r"(<mi>(?:ln|log)</mi>)(?=<m[in]>)",
            r'\1<mspace width="0.17em" />',
            convert(tex, display=display),
        )
        return re.sub(r"<mo>(max|min)</mo>", r"<mi>\1</mi>", words)

    def block(m):
        return "\n```{=html}\n" + math(m, "block") + "\n```\n"

    out = []
    for i, part in enumerate(re.split(r"(```.*?```|`[^`\n]*`)", source, flags=re.S)):
        if i % 2 == 0:
            part = re.sub(
                r"\$\$(.+?)\$\$", lambda m: block(m[1].strip()), part, flags=re.S
            )
            part = re.sub(
                r"(?<![\\$\w])\$(?! )([^$\n]+?)(?<! )\$(?![\w$])",
                lambda m: math(m[1], "inline"),
                part,
            )
        out.append(part)
    return "".join(out)


def render(tool):
    """Let a renderer make the site from the staged copy."""
    program = Path(sys.executable).with_name(tool) if tool == "smalldocs" else tool
    if not shutil.which(program):
        sys.exit(
            f"{tool}: got no such program, expected it on this machine; "
            + REMEDIES[tool]
        )
    subprocess.run([program, "render", STAGED], check=True, cwd=ROOT)
    shutil.rmtree(SITE, ignore_errors=True)
    (STAGED / "_site").rename(SITE)
    # a server shows this page at the address that was not found, in whatever folder:
    # its links start at the top
    lost, base = SITE / "404.html", address()[1]
    lost.write_text(
        re.sub(
            r'((?:href|src)="|name="smalldocs:offset" content=")(?![a-z]+:|[/#"])',
            rf"\1{base}/",
            lost.read_text(),
        )
    )
    (SITE / "llms.txt").write_text(llms())


def llms():
    """List the pages of the sidebar for those who read with a program (llmstxt.org).

    Each has its title, its description and its address, under the name of its section.
    """
    import yaml

    website = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]
    host = "".join(address())

    def line(href):
        notebook = json.loads((STAGED / href).read_text())
        front = yaml.safe_load(text(notebook["cells"][0]).strip("-\n"))
        page = href.removesuffix(".ipynb")
        return f"- [{front['title']}]({host}/{page}.html): {front['description']}"

    lists = [f"# {website['title']}", f"> {website['description']}"]
    for name, pages in sidebar_sections(website["sidebar"]["contents"]):
        lists.append("\n".join([f"## {name}", "", *map(line, pages)]))
    return "\n\n".join(lists) + "\n"


def sidebar_sections(contents, name="Pages"):
    """Return (name, pages) of a part of the sidebar, then of each section inside it."""
    pages, inside = [], []
    for entry in contents:
        if "section" not in entry:
            pages.append(entry["href"])
            continue
        own = [{"href": entry["href"]}] if "href" in entry else []
        inside += sidebar_sections(own + entry["contents"], entry["section"])
    return [(name, pages), *inside] if pages else inside


class Page(html.parser.HTMLParser):
    """Collects what a page links to, and what can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.links += [attrs[k] for k in ("href", "src") if attrs.get(k)]


def broken():
    """Every internal link of the site whose file or anchor does not exist."""
    pages = {p.resolve(): Page(p) for p in SITE.rglob("*.html")}
    for path, page in pages.items():
        name = path.relative_to(SITE.resolve())
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            file = (
                unquote(url.path).replace(address()[1], str(SITE), 1)
                if url.path.startswith("/")
                else unquote(url.path)
            )
            target = (path.parent / file).resolve() if file else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                yield f"{name}: {link}: no such file"
            elif (
                url.fragment
                and target in pages
                and unquote(url.fragment) not in pages[target].anchors
            ):
                yield f"{name}: {link}: no such anchor"


def arguments():
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", choices=["readme"], help="only README.md")
    parser.add_argument(
        "--quarto",
        action="store_true",
        help="render with Quarto, in place of smalldocs",
    )
    return parser.parse_args()


def moved_pages():
    """Read the table of moved pages, and list what is wrong with it for this site."""
    moves, faults = redirects.read_moves((ROOT / "CONTRIBUTING.md").read_text())
    pages = {
        path.relative_to(STAGED).with_suffix(".html").as_posix()
        for kind in ("*.ipynb", "*.md")
        for path in STAGED.rglob(kind)
    }
    return moves, [*faults, *redirects.move_faults(moves, pages)]


def main():
    asked = arguments()
    readme()
    if asked.what == "readme":
        return
    stage()
    moves, wrong = moved_pages()
    if wrong := [*staged.faults(STAGED), *wrong]:
        print(*wrong, sep="\n")
        sys.exit(
            f"{STAGED.name}: got {len(wrong)} faults, expected none; "
            "mend what is named above, nothing was rendered"
        )
    render("quarto" if asked.quarto else "smalldocs")
    pages = len(list(SITE.rglob("*.html")))
    redirects.write_redirects(moves, SITE, "".join(address()))
    faults = sorted(set(broken()))
    print(*faults, sep="\n")
    print(
        f"{pages} pages and {len(moves)} redirects under {SITE.name}/, "
        f"{len(faults)} broken links"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
