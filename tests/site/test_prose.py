"""Pages, docstrings and printed lines are in plain English, in the words of the field.

A stranger searches for image, learning rate and training step. Nobody has to read a
sentence twice: it has a verb, and at most 32 words. `tests/site/prose_exceptions.tsv`
lists what stays, each with the reason.
"""

import ast
import csv
import json
import re

import pytest

from helpers import ROOT

# names that begin a sentence in lower case
LOWER_CASE = r"conv\d|fc\d|torch|nv|numpy|nbdev|papermill|scikit|cuda|safetensors|initW"
LONGEST = 32  # words in a sentence
# what to write instead
PRIVATE_WORDS = {
    r"\bpictures?\b": "image",
    r"(?<![\w-])nets?\b(?!-)": "network, model",
    r"(?<!standard )(?<!absolute )\bdeviations?\b": "standard deviation",
    r"(?<!learning )(?<!error )(?<!sampling )(?<!frame )\brates?\b(?! of error)": (
        "learning rate, error rate"
    ),
    r"\bupdates?\b(?! rule)": "training step",
    r"\bthe source\b(?! code)": "the released code",
    r"\bviews?\b": "crop",
    r"\bgo(?:es)? on with\b": "resume",
    r"\bin the test\b": "at test time",
    r"\bdivided pixels?\b": "normalized pixels",
    r"\b(?:lies?|lying|stands?|standing|speaks?|wants?)\b": "is, has, shows, needs",
    r"\b(?:pages?|tables?|figures?|layers?|networks?|models?|units?|rows?|files?|cells?"
    r"|runs?|notes|code|paper)\s+(?:sees?|says?|tells?|knows?|hears?|speaks?)\b": (
        "states, shows, has; or another subject"
    ),
    r"\b\w*isation\b|\b(?:colou?rs? of the kernels|colours?|greys?|normalis\w+"
    r"|initialis\w+|learnt|behaviours?|neighbours?|centres?|favour\w*)\b": "American",
    r"\bthe start\b": "initialization, beginning",
}
AUXILIARIES = (
    "is are was were be been being am isn't aren't has have had having do does did "
    "can cannot could may might must shall should will would let's"
)
IRREGULAR = (
    "began begun began bought brought built came chose chosen cost cut did done drew "
    "drawn fed fell fit found gave given goes gone got grew grown held kept knew known "
    "led left lent let lost made meant met paid put ran read rose said saw seen sent "
    "set shown shut sold spent split spread stood taken taught tells thought threw "
    "told took understood went won wrote written wore became become broke broken "
    "forgot forgotten hidden hid sank shrank shrunk swung ate beat bent bound chosen "
    "dealt dug flew froze frozen hung hit hurt lay lain rode rung sang slept slid "
    "spun stuck struck swept tore torn woke"
)
VERBS = (
    "accept account add adjust agree aim allow alter amount answer appear apply "
    "approximate argue arrive ask assert assume average avoid balance base beat "
    "become begin believe belong benefit block blur break bring build cache call "
    "cancel care carry cause change charge check choose cite claim clip close collect "
    "color combine come compare compile complete compress compute concern confirm "
    "connect consider consist contain continue contribute converge convert copy "
    "correspond cost count cover crash create credit crop cut damage decay decide "
    "decode decrease define delete deliver depend describe differ disappear discard "
    "display divide double download draw drop edit enable encode end ensure enter "
    "equal estimate evaluate exceed exchange exclude execute exist expect explain "
    "export extend fade fail fall feed fetch fill find finish fit fix flip fold "
    "follow force form freeze fuse gain gather generate get give go grow guarantee "
    "halve handle happen have help hide hold host ignore imply import improve include "
    "increase inherit initialize insert inspect install interpret interrupt introduce "
    "join keep know label last launch lead learn leave let license lift limit link "
    "list load log look lose lower make map mark match matter mean measure meet "
    "mention merge mirror miss mix modify move multiply name need normalize note "
    "number observe occur offer omit open order overfit overlap own pack pad pass pay "
    "perform pick place plan play plot point pool predict prefer prepare prevent "
    "print produce project promise protect prove provide publish pull put quote raise "
    "rank reach react read receive recommend record reduce refer reflect refuse "
    "reject release rely remain remember remove rename render repeat replace report "
    "represent reproduce require rescale resemble resize respond rest restart restore "
    "result resume return reuse reverse rewrite rise round run sample save say scale "
    "score search see seed select send separate serve set share sharpen shift ship "
    "show shrink shuffle simplify sit skip slide smooth solve sort speed spell spend "
    "split spread stack start state stay stem step stop store stretch subtract "
    "succeed suffer suffice suggest sum support suppress swap switch take teach tell "
    "tend test think throw tie time track train transfer travel treat trust try tune "
    "turn type understand update use vanish vary verify view visit wait walk want "
    "warn watch weigh win wish work wrap write yield zoom "
)
PAGES = sorted((ROOT / "nbs").rglob("*.ipynb"))
MODULES = sorted((ROOT / "alexnet_nb").rglob("[a-z]*.py"))
with open(ROOT / "tests/site/prose_exceptions.tsv") as f:
    EXCEPTIONS = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))


def verb_forms():
    """Spell every verb in the forms that a sentence has."""
    forms = set(AUXILIARIES.split()) | set(IRREGULAR.split())
    for verb in VERBS.split():
        stem = verb.removesuffix("e")
        plural = f"{verb[:-1]}ies" if verb.endswith("y") else f"{verb}s"
        past = f"{verb[:-1]}ied" if verb.endswith("y") else f"{stem}ed"
        doubled = {f"{verb}{verb[-1]}ed", f"{verb}{verb[-1]}ing"}
        forms |= {verb, plural, f"{verb}s", f"{verb}es", past, f"{stem}ing"} | doubled
        forms |= {f"{verb}ed", f"{verb}ing"}
    return forms


FORMS = verb_forms()


def relative(path):
    """Name a file as the list of exceptions does."""
    return str(path.relative_to(ROOT))


def without_code(text):
    """Put a noun for code, formulas, quotations and addresses."""
    text = re.sub(r"```.*?```|<style.*?</style>|<!--.*?-->", " ", text, flags=re.S)
    text = re.sub(r"\$\$.*?\$\$", " formula. ", text, flags=re.S)
    text = re.sub(r"`[^`]*`|\$[^$\n]*\$", "Name", text)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", " ", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"https?://\S+", "address", text)
    text = re.sub(r"</?(?:p|div|br|li|summary|details)\b[^>]*>", "\n\n", text)
    text = re.sub(r"<[^>]*>", "", text)
    return re.sub(r"[\"“][^\"”]*[\"”]", "quotation", text)


def private_words(text):
    """Find the private words of a text."""
    text = without_code(text)
    words = []
    for pattern, instead in PRIVATE_WORDS.items():
        for match in re.finditer(pattern, text, re.I):
            context = text[max(0, match.start() - 30) : match.end() + 20]
            words.append(f"{context!r}: write {instead}")
    return words


def sentences(text):
    """Cut the paragraphs and list items of a Markdown text into sentences.

    Headings, tables and fences are left out.
    """
    blocks, block = [], []
    for line in [*without_code(text).splitlines(), ""]:
        line = re.sub(r"^\s*>\s?", "", line)
        is_item = re.match(r"\s*(?:[-*+]|\d+[.)])\s+", line)
        ends_block = not line.strip() or re.match(r"\s*(?:#|\||:::|---)", line)
        if ends_block or is_item:
            blocks.append(" ".join(block))
            block = []
        if is_item:
            line = line[is_item.end() :]
        if not ends_block:
            block.append(line.strip())
    blocks.append(" ".join(block))
    shortened = [
        re.sub(r"\b(e\.g|i\.e|vs|et al|Fig|no|[A-Z])\.", r"\1", b) for b in blocks
    ]
    found = []
    for paragraph in shortened:
        found += re.split(
            rf"(?<=[.!?])[)*_]*\s+(?=[A-Z\[(*_α-ω]|{LOWER_CASE})", paragraph
        )
    return [s for s in found if re.search(r"[.!?][)*_]*$", s)]


def words_of(sentence):
    """List the words of a sentence, without numbers and signs."""
    return re.findall(r"[A-Za-z][\w'’-]*", sentence)


def hard_sentences(text):
    """Find the sentences that are too long, or have no verb."""
    hard = []
    for sentence in sentences(text):
        words = [word.lower().replace("’", "'") for word in words_of(sentence)]
        if len(words) > LONGEST:
            hard.append(f"{len(words)} words: {sentence}")
        if len(words) > 2 and not FORMS.intersection(words):
            hard.append(f"no verb: {sentence}")
    return hard


def page_prose(path):
    """Read the prose of a page: its Markdown, and the Markdown that its cells show."""
    texts = []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            texts.append("".join(cell["source"]))
        for output in cell.get("outputs", []):
            texts.append("".join(output.get("data", {}).get("text/markdown", "")))
    return texts


def without_exceptions(path, faults):
    """Leave out what the list of exceptions allows on a page."""
    allowed = [e["text"] for e in EXCEPTIONS if e["file"] == relative(path)]
    return [f for f in faults if not any(text in f for text in allowed)]


def docstrings(path):
    """Read the docstrings of a module."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            texts.append(ast.get_docstring(node) or "")
    return texts


def printed_lines(path):
    """Read the strings of a module that are more than a name."""
    tree = ast.parse(path.read_text())
    texts = []
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and len(node.value.split()) > 2:
            texts.append(node.value)
    return texts


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_pages_use_the_words_of_the_field(path):
    faults = [fault for text in page_prose(path) for fault in private_words(text)]
    assert without_exceptions(path, faults) == []


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_sentences_have_a_verb_and_an_end(path):
    faults = [fault for text in page_prose(path) for fault in hard_sentences(text)]
    assert without_exceptions(path, faults) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_docstrings_and_printed_lines_use_the_words_of_the_field(path):
    texts = docstrings(path) + printed_lines(path)
    faults = [fault for text in texts for fault in private_words(text)]
    assert without_exceptions(path, faults) == []


def test_exceptions_are_used_and_have_a_reason():
    unused = []
    for exception in EXCEPTIONS:
        path = ROOT / exception["file"]
        if path.suffix == ".py":
            texts = docstrings(path) + printed_lines(path)
        else:
            texts = page_prose(path)
        faults = [f for t in texts for f in private_words(t) + hard_sentences(t)]
        if not any(exception["text"] in fault for fault in faults):
            unused.append(exception["text"])
        assert len(exception["reason"].split()) > 2, exception
    assert unused == []


@pytest.mark.parametrize(
    "text",
    [
        "For one of the two, at most.",
        "By hand, and for good.",
        "The layer is " + "very " * 40 + "deep.",
        "A picture is shown.",
        "We use the colour.",
        "In the test all units are active.",
    ],
)
def test_faults_are_found(text):
    assert private_words(text) + hard_sentences(text)


@pytest.mark.parametrize(
    "text",
    [
        "Each image is cropped, e.g. `view = 3`, and flipped.",
        "Use a smaller learning rate.",
        "# A heading\n\n| a picture | b |\n\nThe error falls [here](the-view.html).",
    ],
)
def test_plain_sentences_are_left_alone(text):
    assert hard_sentences(text) == []
