"""Where the tests find what is not theirs."""

import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
CORPUS = REPOSITORY / "corpus"
PACKAGE = pathlib.Path(__file__).resolve().parents[1]
