"""Names of outputs, from a file and from data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dprp.converter import OptionError
from dprp.converter.chain.labels import labels_of, read_labels
from dprp.models import load_data
from dprp.models.arrays import ArrayData, Arrays
from dprp.models.augment import Augment


@pytest.mark.parametrize(
    ("content", "names"),
    [(b"cat\r\n dog \n", ("cat", "dog")), ("Hund\nÄffchen".encode(), ("Hund", "Äffchen")), (b"\nx\n\n", ("", "x"))],
)
def test_one_name_a_line(content: bytes, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    assert read_labels(tmp_path / "names.txt", 2) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n", "names.txt: has 1 lines, the network 2 outputs; write a name for each"),
        (b"\xff\xfe\n\n", "names.txt: does not read .*; write the name of an output a line, in UTF-8"),
        (b"cat\n\x1b[31m\n", r"names.txt: does not read \(line 2 is .*; at most 1,000 printable characters"),
        (b"", "names.txt: the file is empty"),
        (
            None,
            "names.txt: no such file; check the path, or give that of a text file with the name of an output a line",
        ),
    ],
)
def test_other_files_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(OptionError, match=message):
        read_labels(tmp_path / "names.txt", 2)


def test_data_names_outputs_where_it_has_one_class_for_each() -> None:
    assert labels_of(load_data("digits"), 10) == tuple("0123456789")
    assert labels_of(load_data("digits"), 12) == ()
    split = Arrays(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    assert labels_of(ArrayData("own", split, split, Augment.NONE, ("a", "b\n")), 2) == ()
