"""The builder on real vLLM with tiny random models, whose texts are noise: everything is asked, nothing passes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from dpeer.errors import DataError
from dpeer.eval.build.build import build, refuse_nothing_made
from dpeer.eval.build.files import write
from dpeer.eval.build.spec import BuildSpec
from dpeer.eval.build.texts import TEXTS
from dpeer.eval.store.parts import read_table
from tests.eval.toy_writers import Toy, values

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENGINE = {"device": "cpu", "dtype": "float32", "max_model_len": 4096, "max_num_seqs": 32}


def served(models: Path, name: str) -> dict[str, Any]:
    return {"name": name, "path": str(models / name), "family": name, "engine": ENGINE}


@pytest.mark.usefixtures("cluster")
def test_models_that_write_noise_leave_no_record_and_say_so(
    models: Path, endpoint: tuple[Any, str], tmp_path: Path
) -> None:
    """Noise writes, an honest endpoint and noise verify: noise as verifier is refused, noise as writer is left out."""
    state, url = endpoint
    state.decide = Toy(state.reply)
    given = values(tmp_path, url, names="AE", seeds=4, records={"train": 2}, retries=1, spare=0)
    given["generators"] = [served(models, "a")]
    given["generation"] = {"max_tokens": 16}
    given["verifiers"] = [given["verifiers"][0], served(models, "c")]
    given["verification"] = {"min_mass": 0.0}
    spec = BuildSpec.model_validate(given)
    found = build(spec, nullcontext)
    write(found)
    assert {judge for _, judge in found.verdicts.refused} == {"c"} and {j for _, j in found.verdicts.scales} == {"mild"}
    texts = read_table(spec.folder / "texts", TEXTS)
    assert list(texts["stage"].unique()) == ["scene"] and len(texts) == 4 and not (texts["status"] == "ok").any()
    assert found.short == {("train", ("A", "E")): (0, 2)} and len(found.dropped) == 2
    told = json.loads((spec.folder / "build.json").read_text())
    assert told["records"] == {"train": 0, "dual": 0, "test": 0} and told["dropped"][0]["stage"] == "scene"
    with pytest.raises(DataError, match="no record is left"):
        refuse_nothing_made(found)
