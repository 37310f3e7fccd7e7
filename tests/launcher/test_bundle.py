"""Bundles: equal input, equal bytes; planted changes are found though all hashes are renewed; hostile ones refused."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dpeer import chain
from dpeer.errors import DpeerError
from dpeer.eval.irt.fit_folder import load
from dpeer.eval.store.parts import write_table
from dpeer.eval.store.schema import RATINGS
from dpeer.files import write_text
from dpeer.heldout_file import read_heldout, write_heldout
from dpeer.integrity import parse_state, write_state
from dpeer.launcher.bundle.compare import unequal, words_differ
from dpeer.launcher.bundle.container import INDEX, files_below, index_bytes, read_index, write_zip
from dpeer.launcher.bundle.fits import of_table
from dpeer.launcher.bundle.pack import bundle
from dpeer.launcher.bundle.verify import verify
from dpeer.launcher.cli import app
from tests.launcher.published import EVALUATION, FIT, RUN, change_state, made_evaluation, made_fit, made_run, renew


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    made_run(root / "run")
    made_fit(made_evaluation(root / "eval"), root / "eval" / "irt")
    return root


@pytest.fixture(scope="module")
def published(sources: Path) -> Path:
    bundle([sources / "run"], sources / "bundle", [sources / "eval"], [sources / "eval" / "irt"])
    return sources / "bundle"


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def test_a_sound_bundle_has_no_differences_and_says_what_nobody_can_tell(published: Path) -> None:
    found = list(verify(published))
    assert [c for c in found if c.state == "differs"] == []
    parts = {c.part for c in found if c.state == "verified"}
    assert parts == {"files", RUN, EVALUATION, FIT}
    untold = "\n".join(c.says for c in found if c.state == "not verified")
    for words in ("training itself", "margins themselves", "judges said", "posterior of these ratings", "not included"):
        assert words in untold


def test_folder_and_file_have_one_digest_and_equal_bytes(sources: Path, tmp_path: Path) -> None:
    runner, run = CliRunner(), str(sources / "run")
    places = [tmp_path / name for name in ("a", "a.zip", "b.zip")]
    digests = []
    for place in places:
        result = runner.invoke(app, ["bundle", run, "-o", str(place)])
        assert result.exit_code == 0, result.output
        digests += re.findall(r"^digest (\w{64})$", result.output, re.M)
    assert len(set(digests)) == 1 and places[1].read_bytes() == places[2].read_bytes()
    result = runner.invoke(app, ["verify", str(places[1]), "--digest", digests[0], "-v"])
    assert result.exit_code == 0 and "is the published one" in result.output, result.output
    result = runner.invoke(app, ["verify", str(places[0]), "--digest", "0" * 64])
    assert result.exit_code == 1 and "was published" in result.output
    result = runner.invoke(app, ["bundle", run, "-o", str(places[0])])
    assert result.exit_code == 1 and "it exists" in result.output


# Planted changes


def violated(folder: Path) -> None:
    def lie(certificate: dict[str, Any]) -> None:
        for row in certificate["constraints"]:
            row["verdict"] = "satisfied"

    change_state(folder / RUN / "certificate.json", lie)


def wins(folder: Path) -> None:
    change_state(folder / RUN / "certificate.json", lambda c: c["wins"]["E"].update(rate=0.99))


def margin(folder: Path) -> None:
    path = folder / RUN / "heldout.safetensors"
    held = read_heldout(path)
    assert held
    held.edges.margins[:5] += 3.0
    write_heldout(path, held)


def selection(folder: Path) -> None:
    change_state(folder / RUN / "certificate.json", lambda c: c["selection"]["overall"].update(rate=0.975))


def relink(folder: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change ledger lines and link all anew; the manifest keeps where the ledger ended."""
    path, begins = folder / RUN / "ledger.jsonl", parse_state((folder / RUN / "manifest.json").read_bytes())["chain"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        del row["chain"]
    write_text(path, chain.text(change(rows), begins))


def ledger_value(folder: Path) -> None:
    relink(folder, lambda rows: [row | {"golden_nll": 0.5} if row["step"] == 6 else row for row in rows])


def ledger_short(folder: Path) -> None:
    relink(folder, lambda rows: rows[:-1])


def ledger_end_unsaid(folder: Path) -> None:
    """Its last steps cut, and all that the manifest says of its end with them."""
    relink(folder, lambda rows: rows[:-2])
    change_state(folder / RUN / "manifest.json", lambda m: (m.pop("ledger"), m.update(exported_step=4)))


def early_stop(folder: Path) -> None:
    ledger_end_unsaid(folder)
    write_state(folder / RUN / "stop.json", {"step": 5, "reason": "certified"})


def no_certificate(folder: Path) -> None:
    """As of a run that an old dpeer left unfinished."""
    for name in ("certificate.json", "heldout.safetensors"):
        (folder / RUN / name).unlink()
    change_state(folder / RUN / "manifest.json", lambda m: (m.pop("run"), m.update(finished=None)))


def ledger_tolerance(folder: Path) -> None:
    """With the manifest's end of the ledger renewed as well."""

    def looser(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            row["constraints"]["E"]["tolerance"] = 0.6
        return rows

    relink(folder, looser)
    end = chain.checksum(chain.whole_lines(folder / RUN / "ledger.jsonl")[-1])
    change_state(folder / RUN / "manifest.json", lambda m: m.update(ledger=end))


def tolerance(folder: Path) -> None:
    change_state(
        folder / RUN / "manifest.json", lambda m: m["config"]["objective"]["constraint"]["tolerance"].update(E=0.6)
    )


def data_hash(folder: Path) -> None:
    change_state(folder / RUN / "manifest.json", lambda m: m["data"]["train"].update(sha256="0" * 64))


def recipe_text(folder: Path) -> None:
    path = folder / RUN / "recipe.yaml"
    path.write_text(path.read_text().replace("beta: ", "beta: 1"))


def run_page(folder: Path) -> None:
    path = folder / RUN / "report.html"
    page = path.read_text()
    at = re.search(r"<td[^>]*>0\.\d+", page)
    assert at
    path.write_text(page[: at.end() - 1] + str((int(page[at.end() - 1]) + 3) % 10) + page[at.end() :])


def score(folder: Path) -> None:
    path = folder / EVALUATION / "ratings.parquet"
    table = ratings_of(path)
    table.loc[0, "score"] = table.loc[0, "score"] % 5 + 1
    write_table(path, table)


def ratings_of(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path).select(RATINGS.names).to_pandas()


def other_model(folder: Path) -> None:
    path = folder / EVALUATION / "ratings.parquet"
    table = ratings_of(path)
    swap = {"model0": "model1", "model1": "model0"}
    table["model"] = table["model"].replace(swap)
    write_table(path, table)


def draws(folder: Path) -> None:
    """A better model by a shift of its ability, with the fit's own hash renewed."""
    import hashlib

    path = folder / FIT / "draws.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["draws.theta"][:, :, 1, 0] += 0.3
    np.savez(path, **arrays)
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    change_state(folder / FIT / "manifest.json", lambda m: m.update(sha256=own))


def table_cell(folder: Path) -> None:
    path = folder / FIT / "tables" / "ability.csv"
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    cells[2] = str(float(cells[2]) + 0.1)
    path.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")


def gate(folder: Path) -> None:
    path = folder / FIT / "tables" / "gate.json"
    verdict = json.loads(path.read_text())
    path.write_text(json.dumps(verdict | {"green": not verdict["green"]}, indent=1))


def claims(folder: Path) -> None:
    (folder / FIT / "tables" / "claims.json").write_text(json.dumps(["model1 is better than model0 in A"], indent=1))


def picture(folder: Path) -> None:
    path = next((folder / FIT / "figures").glob("ability*.svg"))
    svg = path.read_text()
    at = list(re.finditer(r"M (\d+\.\d+)", svg))[-1]
    path.write_text(svg[: at.start(1)] + f"{float(at[1]) + 5:.6f}" + svg[at.end(1) :])


def fit_page(folder: Path) -> None:
    path = folder / FIT / "report.html"
    path.write_text(path.read_text().replace("<h1>", "<h1>model1 wins: ", 1))


def lost_gate(folder: Path) -> None:
    (folder / FIT / "tables" / "gate.json").unlink()


def added(folder: Path) -> None:
    (folder / RUN / "error.txt").write_text("nothing")


PLANTED = [
    ((violated,), RUN, ["certificate: constraints"]), ((wins,), RUN, ["certificate: wins.E"]),
    ((margin,), RUN, ["certificate: constraints"]), ((selection,), RUN, ["certificate: selection.overall"]),
    ((ledger_value,), RUN, ["does not end"]), ((ledger_short,), RUN, ["does not end"]),
    ((ledger_end_unsaid,), RUN, ["4 of the recipe's 6 steps"]), ((early_stop,), RUN, ["ended at 5"]),
    ((no_certificate,), RUN, ["certificate.json is not there", "that the run was finished"]),
    ((ledger_tolerance,), RUN, ["tolerance of E is not the recipe's"]),
    ((tolerance,), RUN, ["begins with other settings", "certificate: constraints", "recipe.yaml is not"]),
    ((data_hash,), RUN, ["begins with other settings"]), ((recipe_text,), RUN, ["recipe.yaml is not"]),
    ((run_page,), RUN, ["report.html does not say"]), ((score,), EVALUATION, ["1 of 48 scores do not follow"]),
    ((other_model,), EVALUATION, ["of another model"]),
    ((draws,), FIT, ["ability.csv is not as the draws"]), ((lost_gate,), FIT, ["gate.json: not there"]),
    ((table_cell, gate, claims, fit_page), FIT, ["ability.csv", "gate.json", "claims.json", "report.html does not"]),
    ((picture,), FIT, ["svg: not as the draws give it"]), ((added,), "files", ["belongs to no part"]),
]  # fmt: skip


@pytest.mark.parametrize(("plants", "part", "says"), PLANTED, ids=[plants[0].__name__ for plants, *_ in PLANTED])
def test_planted_changes_are_found_though_all_hashes_are_renewed(
    copy: Path, plants: tuple[Callable[[Path], None], ...], part: str, says: list[str]
) -> None:
    for plant in plants:
        plant(copy)
    assert not hashes_hold(copy), "before they are renewed, the hashes tell"
    renew(copy)
    assert hashes_hold(copy) or part == "files"
    found = [c.says for c in verify(copy, parts=[EVALUATION] if part == "files" else [part]) if c.state == "differs"]
    for words in says:
        assert any(words in said for said in found), (words, found)


def test_a_fit_is_held_against_its_ratings(copy: Path) -> None:
    ratings, table = load(copy / FIT).ratings, copy / EVALUATION / "ratings.parquet"
    assert of_table(ratings, table) == []
    score(copy)
    assert of_table(ratings, table) == ["category"]
    other_model(copy)
    assert "category" in of_table(ratings, table)


def test_words_differ_whatever_versions_a_forger_names(copy: Path) -> None:
    """Words hang on dpeer and its templates; the page says so where these are others."""
    fit_page(copy)
    for package, state in (("numpy", "differs"), ("dpeer", "not verified")):
        index, _ = read_index(copy)
        (copy / INDEX).write_bytes(
            index_bytes(index.model_copy(update={"versions": index.versions | {package: "0.0"}}))
        )
        renew(copy)
        found = [c for c in verify(copy, parts=[FIT]) if c.says.startswith("report.html")]
        assert [c.state for c in found] == [state]


def test_ratings_that_were_left_out_and_unread_scores_are_told(copy: Path) -> None:
    def told() -> str:
        return "\n".join(c.says for c in verify(copy, parts=[EVALUATION]) if c.state == "not verified")

    assert "rated alike" not in told() and "no log-probabilities" not in told()
    path = copy / EVALUATION / "ratings.parquet"
    table = ratings_of(path)
    table.loc[0, "mode"] = "structured"
    write_table(path, table[(table["model"] != "model1") | (table["score"] > 2)].reset_index(drop=True))
    assert "models were not asked and rated alike" in told()
    assert "model0 8 prompts, 8 responses, 16 ratings (16 usable)" in told() and "1 scores: there are no log" in told()


def hashes_hold(folder: Path) -> bool:
    from dpeer.launcher.bundle.verify import _files

    return all(check.state == "verified" for check in _files(folder, read_index(folder)[0]))


def test_a_flipped_byte_of_any_file_is_found(copy: Path) -> None:
    from dpeer.launcher.bundle.verify import _files

    for name in files_below(copy)[::9]:
        path = copy / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        if name != INDEX:
            assert f"{name} does not match" in "\n".join(c.says for c in _files(copy, read_index(copy)[0]))
        path.write_bytes(whole)


def test_what_is_not_finished_or_damaged_is_not_bundled(sources: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sources / "run", tmp_path / "run"))
    change_state(run / "manifest.json", lambda m: m.update(finished=None))
    with pytest.raises(DpeerError, match="not finished"):
        bundle([run], tmp_path / "b")
    shutil.rmtree(run)
    shutil.copytree(sources / "run", run)
    (run / "ledger.jsonl").write_text((run / "ledger.jsonl").read_text().replace("0.8", "0.9"))
    with pytest.raises(DpeerError, match="would prove nothing"):
        bundle([run], tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    with pytest.raises(DpeerError, match="nothing to bundle"):
        bundle([], tmp_path / "b")


def test_trees_and_pages_are_compared_up_to_rounding() -> None:
    assert list(unequal({"a": [1.0, 2]}, {"a": [1.0 + 1e-12, 2]})) == []
    assert list(unequal({"a": [1.0, True]}, {"a": [1.1, 1], "b": 0})) == ["a.0", "a.1", "b"]
    assert words_differ("p 0.125 of 3", "p 0.126 of 3") == "" and words_differ("p 0.125", "p 0.127")
    assert words_differ("12 runs", "13 runs") and words_differ("a 1", "b 1") and words_differ("a 1", "a 1 2")


def test_a_zip_holds_what_the_folder_held(published: Path, tmp_path: Path) -> None:
    write_zip(published, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert sorted(archive.namelist()) == files_below(published)
        assert all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
