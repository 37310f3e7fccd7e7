"""Does leave-one-out choose the link that made the ratings? Logits of adjacent categories against cumulative ones.

    python benchmarks/links.py --sets 20

Half of the sets are drawn from each link by a generator that shares no code with the program: 6 models x 30 items x 4
judges, one dimension, scores 1 to 7, abilities sd 1.5, difficulties 1.2, responses 0.7, severities 0.5, log
discriminations 0.2, thresholds 0.6 apart in the unit of the judge. Each is fitted with --model gmfrm and graded, common
thresholds; the fit with the larger elpd is chosen. A set is a JSON line, and a study that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import Figure, Recorder

from dpeer.eval.irt import Options
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.fit import fit
from dpeer.eval.irt.loo import compare_models

MODELS, ITEMS, JUDGES, SCORES, STEP = 6, 30, 4, 7, 0.6
LINKS = ("gmfrm", "graded")


def ratings(link: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng([seed, 77])
    theta, beta = 1.5 * rng.standard_normal(MODELS), 1.2 * rng.standard_normal(ITEMS)
    severity = 0.5 * rng.standard_normal(JUDGES)
    alpha = np.exp(0.2 * rng.standard_normal(JUDGES))
    u = 0.7 * rng.standard_normal((MODELS, ITEMS, 1))
    tau = STEP * (np.arange(SCORES - 1) - (SCORES - 2) / 2)
    location = (theta[:, None] - beta)[..., None] + u - severity
    x = alpha[:, None] * (location[..., None] - tau)  # [M, Q, J, K - 1]
    if link == "graded":
        score = (rng.random(location.shape)[..., None] < 1 / (1 + np.exp(-x))).sum(axis=-1)
    else:
        logits = np.concatenate([np.zeros((*x.shape[:-1], 1)), x.cumsum(axis=-1)], axis=-1)
        score = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
    m, q, j = np.indices(score.shape)
    table = {"model": m.ravel(), "item": q.ravel(), "judge": j.ravel(), "dimension": 0, "score": score.ravel() + 1}
    frame = pd.DataFrame(table)
    return frame.assign(**{n: n[0] + frame[n].map("{:02d}".format) for n in ("model", "item", "judge", "dimension")})


def chosen(link: str, seed: int, options: dict[str, int]) -> dict[str, object]:
    data, start = encode(ratings(link, seed), scale=range(1, SCORES + 1)), time.perf_counter()
    fits = {m: fit(data, Options(model=m, thresholds="common", seed=seed + 1, **options)) for m in LINKS}
    sampled = time.perf_counter() - start
    table = compare_models(fits).set_index("model")
    best = table["elpd"].idxmax()
    other = table.loc[next(m for m in LINKS if m != best)]
    return {
        "link": link,
        "seed": seed,
        "chosen": best,
        "difference": round(float(-other["difference"]), 2),
        "difference_se": round(float(other["difference_se"]), 2),
        "khat_max": round(float(table["khat_max"].max()), 2),
        "unreliable": int(table["unreliable"].sum()),
        "sampling_s": round(sampled, 1),
        "loo_s": round(time.perf_counter() - start - sampled, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("runs/links.jsonl"))
    recorder = Recorder(parser)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    found = (
        [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    )
    known = {(row["link"], row["seed"]) for row in found}
    options = {name: getattr(arguments, name) for name in ("chains", "warmup", "draws")}
    for number in range(arguments.sets):
        link, seed = LINKS[number % 2], number // 2
        if (link, seed) not in known:
            found.append(chosen(link, seed, options))
            with arguments.output.open("a") as file:
                file.write(json.dumps(found[-1]) + "\n")
            print(found[-1], flush=True)
    right = sum(row["chosen"] == row["link"] for row in found)
    clear = sum(row["difference"] > max(4, 2 * row["difference_se"]) for row in found)
    print(
        f"{right} of {len(found)} sets: the link that made them is chosen; {clear} clearly (4, and 2 standard errors)"
    )
    figures = [Figure("the link that made the ratings is chosen", right / len(found), "share", "higher")]
    figures += [Figure("chosen clearly", clear / len(found), "share"), Figure("sets", len(found), "sets")]
    recorder.write(arguments, figures)


if __name__ == "__main__":
    main()
