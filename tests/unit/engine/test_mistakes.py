"""What a network confuses is counted right, and drawn for few classes and many."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib_inline.backend_inline import _fetch_figure_metadata

from alexnet_nb.engine.mistakes import (
    Predictions,
    class_balance,
    confusion_matrix,
    most_confused,
    plot_class_balance,
    plot_class_errors,
    plot_confusion,
    plot_mistakes,
    predict_validation,
    worst_mistakes,
)
from helpers.packing import pack_folder
from helpers.textures import NAMES, texture_folder

SCRIPTS = (
    "dog",
    "собака",
    "狗",
    "قطة",
    "सिंह",
    "a $cheap$ name that is long",
    "\U0010fffd",
)


@pytest.fixture(scope="module")
def answers(runs, textures):
    return predict_validation(runs / "learned", textures)


def random_answers(classes, n=500):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    predicted = np.where(rng.random(n) < 0.6, labels, rng.integers(0, classes, n))
    names = tuple(f"species {i}" for i in range(classes))
    return Predictions(labels, predicted, rng.random(n, np.float32), names)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """A hundred classes of two images each, and one more of the last."""
    folder = tmp_path_factory.mktemp("hundred")
    names = [f"species {i:03}" for i in range(100)]
    texture_folder(folder / "images/train", names, 2, 16)
    texture_folder(folder / "images/val", names[:98], 1, 16)
    extra = folder / "images/train/species 099"
    (extra / "2.png").write_bytes((extra / "1.png").read_bytes())
    return pack_folder(
        folder / "images", folder / "packed", 16, progress=lambda line: None
    )


def test_the_matrix_counts_every_answer(answers):
    counts = confusion_matrix(answers)
    for true in range(5):
        for named in range(5):
            both = (answers.labels == true) & (answers.predicted == named)
            assert counts[true, named] == both.sum()
    assert counts.sum() == 80
    assert list(counts.sum(1)) == [16] * 5


def test_pairs_are_sorted_and_the_right_answers_left_out(answers):
    counts = confusion_matrix(answers)
    rows = [line.split(" | ") for line in most_confused(answers, 20).splitlines()[2:]]
    numbers = [int(row[2].split(" of ")[0]) for row in rows]
    assert numbers == sorted(numbers, reverse=True)
    assert sum(numbers) == 80 - counts.trace()
    for (true, named, _), number in zip(rows, numbers, strict=True):
        pair = NAMES.index(true.removeprefix("| ")), NAMES.index(named)
        assert pair[0] != pair[1]
        assert counts[pair] == number


def test_the_worst_mistakes_are_wrong_and_sure(answers):
    worst = worst_mistakes(answers, 1000)
    wrong = {i for i in range(80) if answers.labels[i] != answers.predicted[i]}
    assert set(worst.tolist()) == wrong
    sure = answers.confidence[worst]
    assert (np.diff(sure) <= 0).all()
    assert list(worst_mistakes(answers, 3)) == list(worst[:3])


def test_mistakes_are_drawn_with_both_names(answers, textures, style):
    figure = plot_mistakes(answers, textures.val.images, 3)
    for ax, place in zip(figure.axes, worst_mistakes(answers, 3), strict=False):
        shown = textures.val.images[place].transpose(1, 2, 0)
        assert np.array_equal(ax.images[0].get_array(), shown)
        names = [NAMES[kind[place]] for kind in (answers.labels, answers.predicted)]
        sure = f"{answers.confidence[place]:.0%}"
        assert ax.get_title() == f"true: {names[0]}\nnamed: {names[1]}, {sure}"


def test_a_network_without_mistakes_is_drawn(answers, style):
    right = answers._replace(predicted=answers.labels)
    figure = plot_mistakes(right, [])
    (ax,) = figure.axes  # Jupyter shows nothing of a figure without axes
    assert ax.texts[0].get_text() == "No validation image is wrong."


def test_without_mistakes_a_sentence_takes_the_place_of_the_table(answers):
    right = answers._replace(predicted=answers.labels)
    assert most_confused(right) == (
        "No two classes are confused: the network is right about every image."
    )


def bars(ax):
    """The name and the length of every bar."""
    names = [label.get_text() for label in ax.get_yticklabels()]
    return names, [bar.get_width() for bar in ax.patches]


def test_the_error_of_every_class_is_drawn(answers, style):
    names, errors = bars(plot_class_errors(answers).axes[0])
    for name, error in zip(names, errors, strict=True):
        of = answers.labels == NAMES.index(name.removesuffix(" (16)"))
        assert error == pytest.approx(
            (answers.predicted[of] != answers.labels[of]).mean()
        )
    assert errors == sorted(errors, reverse=True)


def test_of_a_hundred_classes_the_extremes_are_named(style):
    answers = random_answers(100)
    _, errors = bars(plot_class_errors(answers).axes[0])
    counts = confusion_matrix(answers)
    every = sorted(1 - counts.diagonal() / counts.sum(1))
    assert errors == pytest.approx([*every[:-11:-1], *every[9::-1]])
    ax = plot_confusion(answers).axes[0]
    assert len(ax.texts) == 0
    assert "number of the class" in ax.get_xlabel()


def test_balance_of_five_classes_and_of_a_hundred(textures, hundred, style):
    names, counts = bars(plot_class_balance(textures).axes[0])
    assert names == list(NAMES)
    assert counts == [60] * 5 + [16] * 5
    train, val = plot_class_balance(hundred).axes[0].lines
    assert list(train.get_ydata()) == [3] + [2] * 99
    assert sum(val.get_ydata()) == 98
    assert class_balance(hundred) == (
        "100 classes; training images: 3 of species 099 (the most), 2 of species 000"
        " (the least); no validation image of species 098, species 099"
    )


@pytest.mark.parametrize("classes", [5, 100])
def test_figures_are_for_white_pages_and_dark_ones(textures, hundred, style, classes):
    """Jupyter puts a figure with labels of one lightness on a box of its own."""
    data = {5: textures, 100: hundred}[classes]
    answers = random_answers(classes)
    for figure in (
        plot_class_balance(data),
        plot_confusion(answers),
        plot_class_errors(answers),
        plot_mistakes(answers, np.zeros((500, 3, 8, 8), np.uint8)),
    ):
        figure.draw_without_rendering()
        assert figure.get_facecolor()[3] == 0
        assert _fetch_figure_metadata(figure) is None


def test_names_in_any_script_are_drawn_without_a_warning(style):
    answers = random_answers(len(SCRIPTS))._replace(names=SCRIPTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            plot_confusion(answers),
            plot_class_errors(answers),
            plot_mistakes(answers, np.zeros((500, 3, 8, 8), np.uint8)),
        ):
            figure.canvas.draw()
    plt.close("all")


def test_equal_classes_have_no_largest_one(textures):
    text = class_balance(textures)
    assert text == "5 classes; training images: 60 of each"
