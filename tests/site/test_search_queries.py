"""Fifty things that people ask find their page by the site's own search box.

The queries are in the words of issue trackers and forums, not in those of our pages.
One of the pages that are named must be among the first three results.
"""

import pytest

from helpers import require_playwright
from helpers.pages import WIDE

pytestmark = pytest.mark.browser

require_playwright()

ANSWERS = "guides/questions.html"
FINE_TUNE = "guides/fine_tune.html"
TRAIN = "guides/train.html"
TROUBLE = "guides/troubleshooting.html"
QUERIES = {
    "PCA": ("augmentation.html", ANSWERS),
    "PCA color augmentation eigenvalues": ("augmentation.html", ANSWERS),
    "fine-tune": (FINE_TUNE,),
    "transfer learning": (FINE_TUNE, ANSWERS),
    "train only the last layer": (FINE_TUNE, ANSWERS),
    "hyperparameters": (ANSWERS, TRAIN),
    "weight initialization": ("learning.html", ANSWERS),
    "number of parameters": ("model.html", ANSWERS),
    "top-5 accuracy": (ANSWERS, "evaluation.html"),
    "top-1 and top-5 error": (ANSWERS, "evaluation.html"),
    "accuracy lower than paper": (ANSWERS, TROUBLE),
    "what accuracy to expect": (ANSWERS,),
    "pretrained weights": (ANSWERS, "guides/predict.html"),
    "out of memory": (TROUBLE,),
    "loss not decreasing": (TROUBLE,),
    "loss stuck at 6.9": (TROUBLE,),
    "loss stuck at 0.69": (TROUBLE,),
    "accuracy stuck at 0.5": (TROUBLE,),
    "loss nan": (TROUBLE,),
    "validation accuracy not improving": (TROUBLE, ANSWERS),
    "overfitting small dataset": (TROUBLE, ANSWERS, TRAIN),
    "dead relu": (TROUBLE,),
    "slow data loading": (TROUBLE,),
    "gpu utilization low": (TROUBLE, ANSWERS),
    "how long does training take": (ANSWERS, TRAIN),
    "224 vs 227": ("model.html", ANSWERS),
    "why input size 227": ("model.html", ANSWERS),
    "why 4096": (ANSWERS,),
    "253,440 neurons": (ANSWERS, "model.html"),
    "which learning rate": (ANSWERS, TRAIN),
    "learning rate schedule": ("learning.html",),
    "batch size": (ANSWERS, TRAIN, "guides/scale.html"),
    "weight decay biases": (ANSWERS, "learning.html"),
    "dropout test time": ("dropout.html", ANSWERS),
    "local response normalization alpha k": ("lrn.html", ANSWERS),
    "LRN or batch normalization": (ANSWERS, "evidence/survived.html"),
    "overlapping pooling": ("pooling.html",),
    "group convolution": (ANSWERS, "model.html"),
    "why two GPUs": ("multigpu.html", ANSWERS),
    "extract fc7 features": (ANSWERS,),
    "visualize filters": (ANSWERS, "qualitative.html"),
    "convert caffe weights": (ANSWERS,),
    "torchvision alexnet different": (ANSWERS, "recipes.html", "model.html"),
    "train on my own dataset": (TRAIN, ANSWERS),
    "how many images do I need": (ANSWERS, TRAIN),
    "grayscale images": (ANSWERS,),
    "CIFAR-10 32x32": (ANSWERS, TROUBLE),
    "ten crop": (ANSWERS, "evaluation.html", "augmentation.html"),
    "mean subtraction": (ANSWERS, "preprocessing.html"),
    "RGB or BGR": (ANSWERS,),
    "softmax negative output": (ANSWERS,),
    "imagenet download": (ANSWERS, TRAIN),
    "resume training": (TRAIN, "engine/resume.html"),
    "predict a single image": ("guides/predict.html", "predict.html"),
}
LINKS = "[...document.querySelectorAll('a')].filter(a => a.getClientRects().length)"


def first_results(page, top, words):
    """Search as a reader would; return the pages of the first three results."""
    page.keyboard.press("Escape")
    page.evaluate(f"window.known = new Set({LINKS})")
    page.keyboard.press("/")
    page.wait_for_function("document.activeElement.matches('input')")
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(words)
    page.wait_for_function(f"{LINKS}.some(a => !window.known.has(a))")
    new_links = f"{LINKS}.filter(a => !window.known.has(a)).map(a => a.href)"
    addresses = page.evaluate(new_links)[:3]
    return [a.partition("#")[0].partition("?")[0].removeprefix(top) for a in addresses]


@pytest.fixture(scope="module")
def found(browser, top):
    """The first three results of every query, all from one page."""
    page = browser.new_page(viewport=WIDE)
    page.goto(f"{top}evidence/survived.html")
    results = {words: first_results(page, top, words) for words in QUERIES}
    page.close()
    return results


@pytest.mark.parametrize("words", QUERIES)
def test_a_question_finds_its_page(found, words):
    assert set(QUERIES[words]) & set(found[words]), found[words]
