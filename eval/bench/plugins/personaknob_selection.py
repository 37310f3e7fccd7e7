"""PersonaKnob, selection: is the golden response the most probable one?"""

from __future__ import annotations

from collections.abc import Iterable

from dpeer.data.faults import Fault
from dpeer.data.parse import Invalid, record
from dpeer.data.read import Row
from dpeer.eval.bench.benchmark import BENCHMARKS, Answers, Benchmark, Item, Metric, Scores, Values
from dpeer.eval.bench.plugins.personaknob import DIMENSIONS, PersonaKnob


class Selection(Benchmark):
    name = "personaknob-selection"
    title = "PersonaKnob (selection)"
    source = PersonaKnob.source
    data = "qisein/PersonaKnob"
    files = PersonaKnob.files
    sample = "personaknob.csv"
    measure = "log-probabilities"
    protocol = "Golden has strictly the highest log-probability per token of its record, as in dpeer's certificate."
    metrics = (
        Metric("golden_first", "the golden response is the most probable", "high"),
        *(
            Metric(f"above_{d}", f"golden is above the response that fails {says}", "high")
            for d, says in DIMENSIONS.items()
        ),
    )

    def items(self, row: Row) -> Iterable[Item]:
        """Columns as in training: `mask`, `prompt`, `golden`, `reject_X`; or the general form."""
        found = record(row)
        if isinstance(found, Fault):
            raise Invalid(found.column, found.message)
        yield Item(found.key, {}, group="+".join(sorted(found.mask)), facts={"record": found})

    def score(self, item: Item, answers: Answers, scores: Scores) -> Values:
        values = {name: float(said[0]) for name, said in answers.items()}
        golden = values.pop("golden")
        above = {name: float(golden > value) for name, value in values.items()}
        single = {
            f"above_{name.partition('#')[0]}": v for name, v in above.items() if name.partition("#")[0] in DIMENSIONS
        }
        return {"golden_first": float(all(above.values()))} | single


BENCHMARKS.register("personaknob-selection", Selection())
