"""What several processes do with one lock."""

from alexnet_nb.base.files import file_lock


def count_up(path, turns):
    """Add to a number in a file; two processes at once would lose turns."""
    for _ in range(turns):
        with file_lock(path.with_suffix(".lock"), progress=lambda line: None):
            number = int(path.read_text())
            path.write_text(str(number + 1))
