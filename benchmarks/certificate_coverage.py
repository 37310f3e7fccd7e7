"""Are certificates true, and what do they cost? False verdicts and the records needed, from margins with known truth.

usage: python benchmarks/certificate_coverage.py [--repeats 600] [--part false|power|wins|choice] [--seed 0]

Records have PersonaKnob's masks: 11 sets of at least two of four dimensions, an edge per active dimension. `false`: every
tolerance equals the true mean of its dimension, with edges counted in full or up to the bound, so any "satisfied" is
called false. `power`: how many records dpeer's certificate needs for "satisfied" compared with the interval that it
replaced (t with Hall's correction for skewness, Bonferroni over constraints and sides). `wins`: lower bounds of win rates
above the truth. `choice`: the best of five equally good cells, corrected for the choice.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import integrate, stats

from benchmarks.common import print_table
from dpeer.config import Certificate, Constraint, Objective
from dpeer.objective.bounds import Sample, log_wealth, wealth_needed
from dpeer.objective.certificate import _sample, certify, win_rates
