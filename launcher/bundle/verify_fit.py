"""Evaluations and fits in a bundle: ratings, and every table, claim and page that follows from the draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dpeer.integrity import Damaged, parse_state
from dpeer.launcher import fsck
from dpeer.launcher.bundle.check import SHOWN, Check, Place
from dpeer.launcher.bundle.compare import PICTURES, file_differs
from dpeer.launcher.bundle.fits import of_table, pages, refuse_misshapen, refuse_unfolding, wanted
from dpeer.launcher.bundle.readings import left_out, wrong_readings
from dpeer.launcher.bundle.verify_run import page_check

MOST_ROWS = 50_000_000
UNFOLDED, FREE = 1000, 1 << 28
"""A table may hold this many times the bytes of its file, and this many in any case."""
BATCH = 1024
DRAWS = (
    "that the draws are of the posterior of these ratings: sampling them again takes `dpeer irt fit`; what they say of "
    "their own mixing (R-hat, effective draws) is recomputed"
)
NEEDED = ("manifest.json", "draws.npz", "report.html", "tables/ability.csv", "tables/gate.json", "tables/claims.json")


def check_evaluation(place: Place) -> Iterator[Check]:
    from dpeer.eval.store.parts import read_sealed, read_table
    from dpeer.eval.store.schema import RATINGS, RESPONSES

    table, responses = place.folder / "ratings.parquet", place.folder / "responses"
    for path in (table, *responses.rglob("*.parquet")):
        _refuse_unfolding(path)
    wrong = [f for f in fsck.check(place.folder) if f.state == "damaged"]
    for finding in wrong:
        yield Check(place.name, "differs", f"{finding.path.name} {finding.says.partition('. ')[0]}")
    if wrong:
        return
    ratings = read_sealed(table, RATINGS).to_pandas()
    answered = read_table(responses, RESPONSES)
    if len(answered):
        known = answered.set_index("response_id")[["model", "item"]]
        mine = ratings[["response_id", "model", "item"]]
        lost = ~mine["response_id"].isin(known.index)
        theirs = known.reindex(mine["response_id"]).reset_index(drop=True)
        other = ~lost & (mine[["model", "item"]].reset_index(drop=True) != theirs).any(axis=1)
        if lost.any() or other.any():
            yield Check(place.name, "differs", f"{int((lost | other).sum())} ratings are of no response in the bundle, "
                        "or of one of another model or prompt")  # fmt: skip
        else:
            yield Check(place.name, "verified", f"{len(ratings):,} ratings, each of a response in the bundle")
        if says := left_out(ratings, answered):
            yield Check(place.name, "not verified", says)
    else:
        yield Check(place.name, "not verified", f"{len(ratings):,} ratings: the responses are not there")
    read, wrong_read = wrong_readings(ratings)
    if wrong_read:
        says = f"{wrong_read} of {read:,} scores do not follow from the log-probabilities beside them"
        yield Check(place.name, "differs", says)
    elif read:
        yield Check(place.name, "verified", f"{read:,} scores follow from the log-probabilities beside them")
    if unread := int((ratings["status"] == "ok").sum()) - read:
        yield Check(place.name, "not verified", f"{unread:,} scores: there are no log-probabilities beside them")
    yield Check(place.name, "not verified", "what models answered and judges said, and that nothing was left out: "
                "their calls leave no trace that one could compute again; ask them again with the recipe")  # fmt: skip


def check_fit(place: Place, table: Path | None) -> Iterator[Check]:
    from dpeer.eval.irt.fit_folder import load

    if lost := [needed for needed in NEEDED if not (place.folder / needed).is_file()]:
        yield Check(place.name, "differs", f"{', '.join(lost)}: not there, and every fit in a bundle has it")
        return
    parse_state((place.folder / "manifest.json").read_bytes())
    refuse_unfolding(place.folder / "draws.npz")
    posterior = load(place.folder)
    refuse_misshapen(posterior)
    if table is None:
        yield Check(place.name, "not verified", "its ratings: no table in the bundle is the one that it is of")
    elif parts := of_table(posterior.ratings, table):
        yield Check(place.name, "differs", f"its ratings are not those of {table.parent.name} ({', '.join(parts)})")
    else:
        yield Check(place.name, "verified", f"its {len(posterior.ratings):,} ratings are those of {table.parent.name}")
    again = place.scratch.parent / place.folder.name
    asked = wanted(place.folder)
    pages(posterior, again, asked)
    yield from _pages(place, again)
    yield Check(place.name, "not verified", DRAWS)
    told = ", ".join(f"{key} {value}" for key, value in asked.items())
    yield Check(place.name, "not verified", f"that claims were chosen before the results were seen ({told})")


def _pages(place: Place, again: Path) -> Iterator[Check]:
    """Tables, gate, claims, pictures and page against those made again from the draws."""
    own = {"manifest.json", "draws.npz"}
    written, made = ({p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()} for f in (place.folder, again))
    wrong = [f"{name} does not follow from the draws" for name in sorted(written - made - own)]
    wrong += [f"{name} is missing" for name in sorted(made - written)]
    tables = sorted(name for name in written & made if name.startswith("tables/"))
    alike = True
    for name in tables:
        if found := file_differs(place.folder / name, again / name):
            wrong.append(f"{name} is not as the draws give it ({found})")
        alike &= (place.folder / name).read_bytes() == (again / name).read_bytes()
    yield from (Check(place.name, "differs", says) for says in wrong)
    if not wrong:
        yield Check(place.name, "verified", f"{len(tables)} files of tables, gate and claims follow from the draws")
    exact = place.same and alike
    pictures = sorted(name for name in written & made if name.endswith(PICTURES))
    other = [name for name in pictures if file_differs(place.folder / name, again / name)]
    if other and exact:
        yield Check(place.name, "differs", f"{', '.join(other[:SHOWN])}: not as the draws give it")
    elif other:
        yield Check(place.name, "not verified", f"{len(other)} of {len(pictures)} pictures: drawn by other versions or "
                    "on another machine, so not compared")  # fmt: skip
    elif pictures:
        yield Check(place.name, "verified", f"{len(pictures)} pictures are as the draws give them")
    mine, anew = ((folder / "report.html").read_text(encoding="utf-8") for folder in (place.folder, again))
    yield page_check(place, "report.html", mine, anew, exact)


def _refuse_unfolding(path: Path) -> None:
    """Damaged: a table that would take far more room than its file, as only a forger's does."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    if (rows := file.metadata.num_rows) > MOST_ROWS:
        raise Damaged(f"would unfold to {rows:,} rows")
    most, found = UNFOLDED * path.stat().st_size + FREE, 0
    for batch in file.iter_batches(BATCH):  # what the footer says of sizes is a forger's word, and before decoding
        found += batch.nbytes
        if found > most:
            raise Damaged(f"would unfold to more than {most:,} bytes")
