"""What packing says while it works, and what it refuses to pack."""

import sys
from pathlib import Path

import pytest

from alexnet_nb.data.packing import pack, progress_bar
from helpers.packing import two_classes


def test_progress_in_a_log_is_a_line_each(capsys):
    """No carriage return, no escape sequence, no bar."""
    said = []
    with progress_bar(640, said.append, interval=0) as bar:
        bar.update(320)
        bar.update(320)
    assert len(said) >= 2
    assert all(line.startswith("packed ") for line in said)
    assert said[-1].startswith("packed 640 of 640 images, ")
    assert said[-1].endswith(" left")
    assert all(line.isprintable() for line in said)
    assert capsys.readouterr() == ("", "")


def test_what_is_packed_at_once_reports_no_progress(tmp_path, capsys):
    pack(two_classes(), tmp_path / "out", 8)
    out, err = capsys.readouterr()
    assert out.startswith("packing 36 + 4 images at 8×8: ")
    assert out.count("\n") == 1
    assert err == ""


def test_a_bar_is_drawn_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(640, print) as bar:
        bar.delay = 0
        bar.update(640)
    assert "packing: 100%|" in capsys.readouterr().err


def test_a_resumed_bar_counts_only_what_it_packs_itself(tmp_path, monkeypatch):
    """What an earlier run has packed is done, and was not done now."""
    from alexnet_nb.data import packing

    def stop(*args):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(packing, "pixel_statistics", stop)
        with pytest.raises(InterruptedError):
            pack(two_classes(), tmp_path / "out", 8, progress=lambda line: None)
    bars = []

    def note(*args):
        bars.append(progress_bar(*args))
        return bars[0]

    monkeypatch.setattr(packing, "progress_bar", note)
    partial = tmp_path / ".out.partial"
    (partial / ".stats.npz.0123").write_bytes(b"torn")
    pack(two_classes(), tmp_path / "out", 8, progress=lambda line: None)
    assert (bars[0].n, bars[0].initial) == (40, 40)
    assert not list((tmp_path / "out").glob(".*"))  # what the first had begun


@pytest.mark.parametrize("source", ["photos", Path("photos")])
def test_a_path_in_place_of_a_source_is_refused_with_the_call_to_make(source, tmp_path):
    with pytest.raises(TypeError) as e:
        pack(source, tmp_path / "out")
    assert str(e.value) == (
        "source: got 'photos', expected an ImageSource; call"
        " pack(find_source('photos'), ...)"
    )
    assert list(tmp_path.iterdir()) == []
