"""The glossary: each term has a sentence and leads to the page that explains it."""

import re


def test_every_term_has_a_sentence_and_a_link(cells):
    text = "\n\n".join("".join(c["source"]) for c in cells("glossary.ipynb"))
    terms = re.split(r"^### ", text, flags=re.M)[1:]
    assert len(terms) >= 40
    for term in terms:
        name, definition = term.strip().split("\n\n")[:2]
        assert re.search(r"\]\([\w/.]+\.ipynb(#[\w-]+)?\)$", definition), name
        assert 1 <= len(re.findall(r"[.:] (?=[A-Z\[])", definition)) <= 4, name
