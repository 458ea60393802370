"""Build the documentation site, and README.md from nbs/index.ipynb.

    python .ci/site.py            README.md, then the site under _docs/, then a check of its links
    python .ci/site.py readme     only README.md

The notebooks are staged by nbdev, TeX becomes MathML, `04_lrn.ipynb` becomes `lrn.ipynb`, and Quarto renders the copy;
where there is no Quarto, smalldocs renders it from the same `_quarto.yml`. `llms.txt` lists the pages of its sidebar.
"""
import configparser
import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
STAGED, SITE = ROOT / "_proc", ROOT / "_docs"
SIGNATURES = (  # as nbdev writes them, and as a reader would
    (r"```python\n\n", "```python\n"), (r"args:(?:VAR_POSITIONAL|Any), kwargs:(?:VAR_KEYWORD|Any)", "*args, **kwargs"),
    (r":(?:NoneType|builtin_function_or_method)=", "="), (r"\b__main__\.", ""), (r"(\ndef \w+\()\n\s*\n\)", r"\1)"))
NUMBER = re.compile(r"(?<![\w/])((?:\.\./)*)\d\d_(\w+\.ipynb)")


def text(cell):
    return "".join(cell["source"])


def readme(folder=ROOT):
    "README.md in a folder: the index notebook's prose, its code, and text outputs; the drawing as a file."
    parts = []
    for cell in json.loads((ROOT / "nbs/index.ipynb").read_text())["cells"]:
        source = text(cell)
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\((\w+\.ipynb)\)", r"(nbs/\1)", source))
            continue
        if "#| hide" in source: continue
        if "echo: false" not in source: parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/svg+xml" in data:
                drawing = "".join(data["image/svg+xml"])
                (folder / "nbs/columns.svg").write_text(drawing + "\n")
                parts.append("![The two columns of AlexNet, and which layers read both](nbs/columns.svg)")
            elif "text/plain" in data: parts.append("```\n" + "".join(data["text/plain"]) + "\n```")
    (folder / "README.md").write_text("<!-- made from nbs/index.ipynb by .ci/site.py -->\n\n" + "\n\n".join(parts).replace("```\n\n```python\n", "") + "\n")


def address():
    "Where the site will stand: its host, and its folder there."
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    return settings["DEFAULT"]["doc_host"], settings["DEFAULT"]["doc_baseurl"]


def stage():
    "nbdev's copy of the notebooks, with plain names, MathML and relative links."
    from nbdev.serve import proc_nbs
    shutil.rmtree(STAGED, ignore_errors=True)
    proc_nbs(force=True)
    host = "".join(address())
    config = STAGED / "_quarto.yml"
    config.write_text(config.read_text().replace("website:\n", f"website:\n  site-url: {host}\n"))
    for path in list(STAGED.rglob("*.ipynb")):
        nb = json.loads(path.read_text())
        top = "../" * (len(path.relative_to(STAGED).parts) - 1)
        relative = lambda words: words.replace(host + "/", top).replace(host, top)
        for cell in nb["cells"]:
            source = text(cell)
            if cell["cell_type"] == "raw": source = re.sub(r"^output-file:.*\n", "", source, flags=re.M)
            if cell["cell_type"] == "markdown":
                source = mathml(NUMBER.sub(r"\1\2", relative(source)))
            cell["source"] = source
            for output in cell.get("outputs", []):
                for kind in ("text/markdown", "text/html"):
                    if kind in output.get("data", {}):
                        words = NUMBER.sub(r"\1\2", relative("".join(output["data"][kind])))
                        for found, plain in SIGNATURES: words = re.sub(found, plain, words)
                        output["data"][kind] = words
        path.unlink()
        path.with_name(re.sub(r"^\d\d_", "", path.name)).write_text(json.dumps(nb))


def mathml(source):
    "TeX between dollars, outside of code, becomes MathML."
    from latex2mathml.converter import convert
    def math(tex, display):
        "With the gap of TeX after ln, which is missing, and without those around max, which are too many."
        words = re.sub(r"(<mi>(?:ln|log)</mi>)(?=<m[in]>)", r'\1<mspace width="0.17em" />', convert(tex, display=display))
        return re.sub(r"<mo>(max|min)</mo>", r"<mi>\1</mi>", words)
    block = lambda m: "\n```{=html}\n" + math(m, "block") + "\n```\n"
    out = []
    for i, part in enumerate(re.split(r"(```.*?```|`[^`\n]*`)", source, flags=re.S)):
        if i % 2 == 0:
            part = re.sub(r"\$\$(.+?)\$\$", lambda m: block(m[1].strip()), part, flags=re.S)
            part = re.sub(r"(?<![\\$\w])\$(?! )([^$\n]+?)(?<! )\$(?![\w$])", lambda m: math(m[1], "inline"), part)
        out.append(part)
    return "".join(out)


def render():
    "Quarto where there is one, else smalldocs."
    tool = ["quarto", "render"] if shutil.which("quarto") else [str(Path(sys.executable).with_name("smalldocs")), "render"]
    subprocess.run([*tool, str(STAGED)], check=True, cwd=ROOT)
    shutil.rmtree(SITE, ignore_errors=True)
    (STAGED / "_site").rename(SITE)
    # a server shows this page at the address that was not found, in whatever folder: its links start at the top
    lost, base = SITE / "404.html", address()[1]
    lost.write_text(re.sub(r'((?:href|src)="|name="smalldocs:offset" content=")(?![a-z]+:|[/#"])', rf"\1{base}/", lost.read_text()))
    (SITE / "llms.txt").write_text(llms())


def llms():
    "Every page of the sidebar with its title, its line and its address, for those who read with a program (llmstxt.org)."
    import yaml
    website, (host, base) = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"], address()
    def line(href):
        front = yaml.safe_load(text(json.loads((STAGED / href).read_text())["cells"][0]).strip("-\n"))
        return f"- [{front['title']}]({host}{base}/{href.removesuffix('.ipynb')}.html): {front['description']}"
    contents = website["sidebar"]["contents"]
    parts = {"Pages": [c for c in contents if "href" in c]} | {c["section"]: c["contents"] for c in contents if "section" in c}
    lists = ["\n".join([f"## {name}", "", *(line(c["href"]) for c in part)]) for name, part in parts.items()]
    return "\n\n".join([f"# {website['title']}", f"> {website['description']}", *lists]) + "\n"


class Page(html.parser.HTMLParser):
    "Collects what a page links to, and what can be linked to."
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.links += [attrs[k] for k in ("href", "src") if attrs.get(k)]


def broken():
    "Every internal link of the site whose file or anchor does not exist."
    pages = {p.resolve(): Page(p) for p in SITE.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc: continue
            file = unquote(url.path).replace(address()[1], str(SITE), 1) if url.path.startswith("/") else unquote(url.path)
            target = (path.parent / file).resolve() if file else path
            if target.is_dir(): target /= "index.html"
            if not target.exists(): yield f"{path.name}: {link}: no such file"
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors: yield f"{path.name}: {link}: no such anchor"


def main():
    readme()
    if sys.argv[1:] == ["readme"]: return
    stage()
    render()
    faults = sorted(set(broken()))
    print(*faults, sep="\n")
    print(f"{len(list(SITE.rglob('*.html')))} pages under {SITE.name}/, {len(faults)} broken links")
    sys.exit(bool(faults))


if __name__ == "__main__": main()
