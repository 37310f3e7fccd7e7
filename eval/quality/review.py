"""Records for people to read: a sheet out, one row per response and dimension in an order that tells nothing, and back."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.errors import DataError
from dpeer.escape import csv_cell
from dpeer.eval.audit.pairs import prompt_text
from dpeer.eval.audit.rates import NORMAL, Interval
from dpeer.eval.elsewhere.sheets import stream
from dpeer.eval.irt.agreement import kappa_of
from dpeer.eval.irt.types import Floats, Ints
from dpeer.eval.quality.rated import Rated
from dpeer.eval.store.parts import content_id
from dpeer.data.schema import DataSet
from dpeer.files import write_text

HEADER = ("id", "dimension", "what it is", "prompt", "response", "verdict", "note")
YES, NO = ("yes", "y", "1", "pass", "passes", "satisfies"), ("no", "n", "0", "fail", "fails")
BLANK = ("", "?", "-", "skip")
BOOTSTRAPS = 2000
