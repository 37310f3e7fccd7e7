"""dpeer's side of irt_vs_numpyro.py: a fit as `dpeer irt fit` does it, its draws kept for the comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dpeer.eval.irt.diagnostics import gate
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.types import Options


def main(job: dict[str, Any]) -> dict[str, Any]:
    ratings = encode(Path(job["table"]))
    posterior = fit(ratings, Options(**job["options"]))
    verdict = gate(posterior)
    np.savez(job["output"], **{name: posterior.draws[name] for name in ("theta", "severity")})
    return {
        "gradients": posterior.facts["leapfrogs"],
        "divergences": verdict["divergences"],
        "gate": {key: verdict[key] for key in ("green", "reasons", "rhat_max", "ess_bulk_min", "ess_tail_min")},
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
