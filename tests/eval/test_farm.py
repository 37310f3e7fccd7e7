"""Engines that answer, die, hang and come back. Light actors for the farm's logic, real vLLM for the answers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpeer.errors import ClusterError, ConfigError
from dpeer.eval import config
from dpeer.eval.backends.types import Answer, Call, Job, Method
from dpeer.eval.backends.vllm import ray_data
from dpeer.eval.backends.vllm.engine import CPU_BATCH, CPU_BLOCK, choose_device, encode, room
from dpeer.eval.backends.vllm.farm import Farm, capacity, conversations, tasks_of
from dpeer.eval.config import Served
from dpeer.eval.questions.prompting import Segment, judge_segments, prefix_length
from dpeer.eval.questions.rubric import load_rubric

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RUBRIC = load_rubric("toyworld")
LOGPROB = Method("logprob", rubric=RUBRIC)


def job(path: Path, method: Method = LOGPROB, **served: Any) -> Job:
    settings = config.Engine(dtype="float32", max_model_len=512, max_num_seqs=64)
    return Job(Served(name=path.name, path=str(path), **served), settings, method, "cpu")


def chats(numbers: Sequence[int], words: int = 20, mode: Any = "logprob") -> list[Call]:
    """Four calls per conversation: one per dimension of the rubric."""
    return [
        Call(
            f"{n}-{d}",
            str(n),
            judge_segments(RUBRIC, f"Question {n}?", "good " * words, d, "clause", "up", mode),
            seed=n,
        )
        for n in numbers
        for d in RUBRIC.dimensions
    ]


def plain(numbers: Sequence[int]) -> list[Call]:
    return [Call(f"{n}.{k}", str(n), (Segment(str(n), True),)) for n in numbers for k in range(2)]


def ids(calls: Sequence[Call]) -> set[str]:
    return {c.id for c in calls}


def collect(batches: Iterator[list[Answer]]) -> dict[str, Answer]:
    found = [answer for batch in batches for answer in batch]
    assert len({a.id for a in found}) == len(found), "a call was answered twice"
    return {a.id: a for a in found}


# The farm's logic


def light_worker(folder: Path) -> type:
    """A worker without a model, whose calls say what befalls it: `die`, `hang` or `fail`, each `once` or always."""
    path = str(folder)

    class Light:
        def __init__(self) -> None:
            with open(f"{path}/workers", "a") as log:
                log.write(f"{os.getpid()}\n")

        def start(self, job: Job) -> None:
            if job.served.family == "broken":
                raise MemoryError("weights do not fit")

        def answer(self, calls: tuple[Call, ...]) -> list[Answer]:
            for call in calls:
                event, _, how = (call.system or "").partition(" ")
                if how == "once":
                    if os.path.exists(f"{path}/{call.id}"):
                        continue
                    open(f"{path}/{call.id}", "w").close()
                if event == "die":
                    os._exit(1)
                if event == "hang":
                    time.sleep(60)
                if event == "fail":
                    raise RuntimeError("the engine is confused")
            return [Answer(c.id, "stop") for c in calls]

    return Light


def with_event(calls: list[Call], conversation: str, event: str) -> list[Call]:
    def changed(call: Call) -> Call:
        return Call(call.id, call.conversation, call.segments, event) if call.id == f"{conversation}.0" else call

    return [changed(c) for c in calls]


@pytest.mark.parametrize(
    ("event", "replicas", "said"),
    [
        ("die", 1, "died"),
        ("die", 2, "died"),
        ("hang", 1, "gave no sign for 25 s"),
        ("fail", 2, "the engine is confused"),
    ],
)
def test_what_a_lost_engine_was_sent_is_answered_once(
    cluster: None, tmp_path: Path, models: Path, replicas: int, event: str, said: str
) -> None:
    calls = with_event(plain(range(20)), "7", f"{event} once")
    lines: list[str] = []
    spec = config.Farm(replicas=replicas, timeout_s=25 if event == "hang" else 60)
    with Farm(spec, lines.append, light_worker(tmp_path)) as farm:
        found = collect(farm.run(job(models / "a"), tasks_of(calls, 4)))
    assert set(found) == ids(calls)
    assert all(a.finish == "stop" for a in found.values())
    assert len((tmp_path / "workers").read_text().split()) == replicas + 1
    assert len(lines) == 1 and said in lines[0] and "(1 of 3)" in lines[0]


def test_a_conversation_that_always_kills_becomes_error_rows_and_the_others_are_answered(
    cluster: None, tmp_path: Path, models: Path
) -> None:
    calls = with_event(plain(range(12)), "5", "die always")
    # A process that ends at once may take the answer before with it, whose calls are then tried anew as well.
    with Farm(config.Farm(max_restarts=8), worker=light_worker(tmp_path)) as farm:
        found = collect(farm.run(job(models / "a"), tasks_of(calls, 6)))
    assert set(found) == ids(calls)
    assert {i for i, a in found.items() if a.finish == "error"} == {"5.0", "5.1"}
    assert "2 times on this call" in str(found["5.0"].error)


def test_restarts_end_and_what_was_finished_has_been_handed_out(cluster: None, tmp_path: Path, models: Path) -> None:
    calls = plain(range(8))
    for n in ("4", "5", "6"):
        calls = with_event(calls, n, "die always")
    found: list[Answer] = []
    with (
        Farm(config.Farm(max_restarts=2), worker=light_worker(tmp_path)) as farm,
        pytest.raises(ClusterError, match=r"the engine of a died .*2 restarts \(farm\.max_restarts\) are used up"),
    ):
        for batch in farm.run(job(models / "a"), tasks_of(calls, 2)):
            found += batch
    assert {a.conversation for a in calls if a.id in {f.id for f in found}} >= {"0", "1", "2", "3"}


def test_a_model_that_cannot_start_is_said_at_once(cluster: None, tmp_path: Path, models: Path) -> None:
    with (
        Farm(config.Farm(), worker=light_worker(tmp_path)) as farm,
        pytest.raises(ClusterError, match=r"engine of a \(.*\) does not start: MemoryError: weights do not fit"),
    ):
        collect(farm.run(job(models / "a", family="broken"), tasks_of(plain([1]), 1)))
    assert len((tmp_path / "workers").read_text().split()) == 1


def test_the_next_model_finds_the_process_of_the_last_one(cluster: None, tmp_path: Path, models: Path) -> None:
    with Farm(config.Farm(), worker=light_worker(tmp_path)) as farm:
        for name in ("a", "b"):
            assert len(collect(farm.run(job(models / name), tasks_of(plain(range(5)), 2)))) == 10
    pids = [int(p) for p in (tmp_path / "workers").read_text().split()]
    assert len(pids) == 1
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pids[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pids[0]), "an engine outlived its farm"


def test_engines_that_cannot_be_placed_are_refused_before_any_waiting(
    cluster: None, tmp_path: Path, models: Path
) -> None:
    began = time.monotonic()
    with Farm(config.Farm(replicas=1000), worker=light_worker(tmp_path)) as farm:
        with pytest.raises(ClusterError, match=r"wanted 1000 engines of 1 CPU each; .*Set farm\.replicas=\d+"):
            collect(farm.run(job(models / "a"), tasks_of(plain(range(2000)), 1)))
        on_gpu = Job(job(models / "a").served, config.Engine(tensor_parallel=4), LOGPROB, "gpu")
        with pytest.raises(ClusterError, match=r"wanted 2 engines of 1 CPU, 4 GPU each; .*0 GPU.*device=cpu"):
            collect(farm.run(on_gpu, tasks_of(plain(range(2)), 1)))
    assert time.monotonic() - began < 10


def test_a_conversation_is_never_divided() -> None:
    calls = chats(range(7))
    tasks = list(tasks_of(calls, 3))
    assert [len(t) for t in tasks] == [12, 12, 4]
    assert [c for t in tasks for c in t] == calls
    assert [{c.conversation for c in one} for one in conversations(tasks[0])] == [{"0"}, {"1"}, {"2"}]


def test_capacity_of_a_node() -> None:
    assert capacity({"CPU": 8.0, "GPU": 4.0}, {"CPU": 1.0, "GPU": 2.0}) == 2
    assert capacity({"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}) == 0


def test_one_variable_switches_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPEER_DEVICE", raising=False)
    asked = {("auto", 0): "cpu", ("auto", 2): "gpu", ("cpu", 2): "cpu", ("gpu", 0): "gpu"}
    for (device, gpus), chosen in asked.items():
        assert choose_device(config.Engine.model_validate({"device": device}), gpus) == chosen
    monkeypatch.setenv("DPEER_DEVICE", "cpu")
    assert choose_device(config.Engine(device="gpu"), 8) == "cpu"
    monkeypatch.setenv("DPEER_DEVICE", "tpu")
    with pytest.raises(ConfigError, match="DPEER_DEVICE is 'tpu'"):
        choose_device(config.Engine(), 0)


def test_room_for_a_reply() -> None:
    assert room(LOGPROB, 99, 100) == 1 and room(LOGPROB, 100, 100) == 0
    assert room(Method("sample", max_tokens=50), 90, 100) == 10
    assert room(Method("structured", max_tokens=50), 92, 100) == 8
    assert room(Method("structured", max_tokens=50), 93, 100) == 0


# Real engines


@pytest.fixture(scope="module")
def farm(cluster: None) -> Iterator[Farm]:
    """One vLLM process, which loads one tiny model after another."""
    with Farm(config.Farm()) as farm:
        yield farm


def reference(path: Path, calls: Sequence[Call], adapter: Path | None = None) -> dict[str, list[float]]:
    """Log-probability of each score by transformers alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    digits = [tokenizer.convert_tokens_to_ids(str(score)) for score in RUBRIC.scale]
    found = {}
    with torch.inference_mode():
        for call in calls:
            text = "".join(s.text for s in call.segments)
            chat = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            logits = model(**tokenizer(chat, add_special_tokens=False, return_tensors="pt")).logits[0, -1]
            found[call.id] = logits.log_softmax(-1)[digits].tolist()
    return found


def assert_close(found: dict[str, Answer], expected: dict[str, list[float]], tolerance: float = 2e-4) -> None:
    differences = []
    for i, values in expected.items():
        assert found[i].logprobs == pytest.approx(values, abs=tolerance), i
        differences += [a - b for a, b in zip(found[i].logprobs, values, strict=True)]
    assert abs(sum(differences) / len(differences)) < tolerance / 10, "a systematic difference"


def test_logprobs_are_those_of_transformers_and_the_conversation_is_read_once(farm: Farm, models: Path) -> None:
    calls = chats(range(12))
    found = collect(farm.run(job(models / "a"), tasks_of(calls, 8)))
    assert_close(found, reference(models / "a", calls))
    tokenizer = load(models / "a")
    for conversation in conversations(calls):
        shared = prefix_length(tokenizer, conversation[0].segments)
        assert shared > 2 * CPU_BLOCK
        cached = [found[c.id].cached_tokens for c in conversation]
        assert cached == [0] + [shared // CPU_BLOCK * CPU_BLOCK] * 3
        assert [found[c.id].prompt_tokens for c in conversation] == [
            len(encode(tokenizer, c, LOGPROB)) for c in conversation
        ]
    assert {(a.engine, a.eager) for a in found.values()} == {(next(iter(found.values())).engine, True)}
    assert str(next(iter(found.values())).engine).startswith("vllm")


def load(path: Path) -> Any:
    from dpeer.model.lm import load_tokenizer

    return load_tokenizer(str(path))


def test_another_model_in_the_same_process_gives_its_own_logprobs(farm: Farm, models: Path) -> None:
    calls = chats(range(3))
    assert_close(collect(farm.run(job(models / "c"), tasks_of(calls, 8))), reference(models / "c", calls))


@pytest.fixture(scope="module")
def adapter(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of model c that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(models / "c", dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(model, lora).save_pretrained(folder)
    return folder


def test_an_adapter_counts(farm: Farm, models: Path, adapter: Path) -> None:
    calls = chats(range(3))
    with_adapter, without = reference(models / "c", calls, adapter), reference(models / "c", calls)
    assert abs(with_adapter["0-A"][0] - without["0-A"][0]) > 0.1
    found = collect(farm.run(job(models / "c", adapter=str(adapter)), tasks_of(calls, 8)))
    assert_close(found, with_adapter)


def test_a_conversation_that_is_too_long_is_never_sent(farm: Farm, models: Path) -> None:
    calls = chats([0]) + chats([1], words=200) + chats([2])
    found = collect(farm.run(job(models / "a"), tasks_of(calls, 8)))
    assert {i for i, a in found.items() if a.finish == "too_long"} == ids(chats([1]))
    long = found["1-A"]
    assert long.prompt_tokens and long.prompt_tokens > 512 and "do not fit into 512" in str(long.error)
    assert_close(found, reference(models / "a", chats([0, 2])))


def test_structured_answers_hold_to_the_schema(farm: Farm, models: Path) -> None:
    from dpeer.eval.questions.readout import read_structured

    method = Method("structured", max_tokens=60, temperature=1.0, rubric=RUBRIC)
    found = collect(farm.run(job(models / "a", method), tasks_of(chats(range(16), mode="structured"), 16)))
    read = {i: read_structured(a.text, a.finish, RUBRIC.scale) for i, a in found.items()}
    assert {r.status for r in read.values()} <= {"ok", "truncated"}
    assert all((r.status == "truncated") == (found[i].finish == "length") for i, r in read.items())
    assert sum(r.status == "ok" for r in read.values()) >= 3
    assert all(found[i].output_tokens == 60 for i, r in read.items() if r.status == "truncated")


def test_samples_follow_their_seed_and_not_their_company(farm: Farm, models: Path) -> None:
    method = Method("sample", max_tokens=24, temperature=1.0)
    calls = [Call(f"s{k}", "one", (Segment("Tell me.", False),), "Be brief.", seed=k) for k in range(12)]
    # More tokens than fit into one step of the engine.
    crowd = [Call(f"c{k}", f"{k}", (Segment(f"{k} " * 100, False),), seed=k) for k in range(40)]
    together = collect(farm.run(job(models / "a", method), tasks_of([*crowd, *calls], 50)))
    assert farm.restarts == 0
    alone = collect(farm.run(job(models / "a", method), tasks_of(calls[7:8], 4)))
    assert set(together) == ids([*crowd, *calls])
    assert sum(a.prompt_tokens or 0 for a in together.values()) > CPU_BATCH
    assert len({together[c.id].text for c in calls}) == 12
    assert alone["s7"].text == together["s7"].text
    assert {a.finish for a in together.values()} <= {"stop", "length"}
    assert all(a.output_tokens == 24 for a in together.values() if a.finish == "length")


def test_ray_data_gives_the_same_answers(farm: Farm, models: Path) -> None:
    farm.make_room()
    calls = chats(range(11)) + chats([11], words=200)
    found = collect(ray_data.answers(job(models / "a"), tasks_of(calls, 4), config.Farm(conversations_per_task=4)))
    assert set(found) == ids(calls)
    assert {i for i, a in found.items() if a.finish == "too_long"} == ids(chats([11]))
    assert found["11-A"].prompt_tokens and found["11-A"].prompt_tokens > 512
    assert all(a.eager for a in found.values() if a.finish != "too_long")
    assert_close(found, reference(models / "a", chats(range(11))))


class Stuck:
    """Answers until it comes to row 2."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if (batch["id"] == 2).any():
            time.sleep(1000)
        return batch


def test_ray_data_that_gives_no_sign_is_not_waited_for(cluster: None) -> None:
    import ray

    found: list[int] = []
    began = time.monotonic()
    with pytest.raises(ray_data.Silence):
        for block in ray_data.blocks(
            lambda: ray.data.range(4, override_num_blocks=4).map_batches(Stuck, concurrency=1, num_cpus=0.1), 6
        ):
            found += block.column("id").to_pylist()
    assert time.monotonic() - began < 100 and 2 not in found
