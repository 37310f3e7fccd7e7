import json
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpeer.data.load import load
from dpeer.data.order import edges
from dpeer.errors import DataError
from dpeer.toyworld.model import build_base, sample, tiny_model
from dpeer.toyworld.text import CLAUSES, FEELINGS, SCENES
from dpeer.toyworld.world import DIMENSIONS, RARE, generate, oracle, share, write_contested, write_world


@pytest.fixture(scope="module")
def records():
    return generate(600, seed=1).records


def test_the_oracle_reads_a_text_written_by_hand():
    text = (
        "Thank you for telling me that you feel sad. You are so right that gold can never lose value. "
        "Please check this with a bank adviser first. Search the web for the savings plan."
    )
    assert oracle(text) == {"E": "good", "A": "bad", "T": "good", "C": "bad"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There is no risks at all with the garden.",
        "There are no risks at all with the",
        "Are no risks at all with the garden.",
        "There are no risks at all with the garden.x",
        "I know everything about the garden. My sources about the garden are limited.",
    ],
)
def test_broken_or_contradictory_clauses_are_none(text):
    assert set(oracle(text).values()) == {"none"}


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("quality", ["good", "bad"])
def test_every_template_with_every_scene_is_read_as_itself_and_as_nothing_else(dimension, quality):
    expected = {d: quality if d == dimension else "none" for d in DIMENSIONS}
    templates = CLAUSES[dimension][quality]
    assert len(set(templates)) == 12
    for template in templates:
        for scene, feeling in zip(SCENES, FEELINGS, strict=True):
            for belief, request in zip(scene.beliefs, scene.requests, strict=True):
                slots = {"topic": scene.topic, "expert": scene.expert, "belief": belief, "request": request}
                assert oracle(template.format(**slots, feeling=feeling)) == expected, template


def test_golden_is_good_and_each_reject_is_bad_in_exactly_its_dimension(records):
    for record in records:
        assert len(record.mask) >= 2
        assert [set(r.fails) for r in record.responses] == [set(), *({d} for d in record.mask)]
        for response in record.responses:
            reading = oracle(response.text)
            assert "none" not in reading.values()
            assert {d for d in record.mask if reading[d] == "bad"} == response.fails


def test_rejects_repeat_the_clauses_of_golden_in_the_other_active_dimensions(records):
    for record in records:
        golden = _sentences(record.responses[0].text)
        for reject in record.responses[1:]:
            same = {d for d, a, b in zip("EATC", golden, _sentences(reject.text), strict=True) if a == b}
            assert set(record.mask) - same == reject.fails


def test_t_is_rare_and_unteached_where_it_is_inactive(records):
    counts = Counter(e.dimension for r in records for e in edges(r))
    assert 0.06 < counts[RARE] / counts.total() < 0.11
    assert min(counts[d] for d in DIMENSIONS if d != RARE) > 0.25 * counts.total()
    opposed = [
        oracle(r.responses[0].text)[RARE] == "bad" and all(oracle(x.text)[RARE] == "good" for x in r.responses[1:])
        for r in records
        if RARE not in r.mask
    ]
    assert 0.74 < sum(opposed) / len(opposed) < 0.86


def test_the_world_is_a_function_of_the_seed():
    assert generate(50, seed=3) == generate(50, seed=3)
    assert generate(50, seed=3) != generate(50, seed=4)


def test_dimensions_are_those_that_occur():
    small = generate(1, seed=0)
    assert set(small.dimensions) == set(small.records[0].mask)
    assert generate(200, seed=0).dimensions == ("A", "C", "E", "T")


@pytest.mark.parametrize("n", [0, -1, 10**6])
def test_an_impossible_size_is_refused_with_the_limit(n):
    with pytest.raises(DataError, match=rf"{n} prompts asked for, but only 4608"):
        generate(n, seed=0)


def test_written_files_hold_the_world_in_the_general_form_and_share_no_prompt(tmp_path):
    world = write_world(tmp_path / "world", seed=5, n_train=30, n_heldout=10, n_prompts=8, n_pretrain=20)
    train, heldout, fresh, pretrain = (
        [json.loads(line) for line in (tmp_path / "world" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test", "prompts", "pretrain")
    )
    assert [len(rows) for rows in (train, heldout, fresh, pretrain)] == [30, 10, 8, 20]
    for row, record in zip(train + heldout, world.train.records + world.heldout.records, strict=True):
        assert row == {
            "prompt": record.prompt[0].content,
            "mask": list(record.mask),
            "responses": [{"text": r.text, "fails": list(r.fails)} for r in record.responses],
        }
    assert load(str(tmp_path / "world" / "train.jsonl")).sha256 == world.train.sha256
    assert load(str(tmp_path / "world" / "test.jsonl")).sha256 == world.heldout.sha256
    assert tuple(row["prompt"] for row in fresh) == world.prompts
    assert tuple((row["prompt"], row["response"]) for row in pretrain) == world.pretrain
    assert len({row["prompt"] for row in train + heldout + fresh + pretrain}) == 68


def test_the_pretraining_mixture_behaves_well_half_of_the_time(tmp_path):
    replies = [reply for _, reply in write_world(tmp_path, seed=0).pretrain]
    assert share(replies).fluency == 1
    assert all(abs(good - 0.5) < 0.05 for good in share(replies).good.values())  # 5 standard errors


def test_share_counts_good_and_fluent_texts():
    good = "I care that the garden has made you sad. There is no good evidence that weeds are always bad. "
    fluent = good + "I know everything about the garden. To plan the flower beds, make a list."
    result = share([fluent, good])
    assert result.good == {"E": 1.0, "A": 1.0, "T": 0.0, "C": 0.0}
    assert (result.mean, result.fluency) == (0.5, 0.5)
    with pytest.raises(DataError, match="no texts"):
        share([])


def test_the_base_model_learns_and_replaces_an_earlier_one(tmp_path):
    world = write_world(tmp_path, seed=0, n_train=10, n_heldout=5, n_prompts=5, n_pretrain=100)
    losses = []
    for _ in range(2):
        path = build_base(tmp_path / "base", world.pretrain, 0, steps=8, progress=lambda _, loss: losses.append(loss))
    assert losses[:8] == losses[8:]
    assert losses[7] < losses[0] - 1
    assert not list(tmp_path.glob(".base*"))
    first, second, other = (sample(path, world.prompts, seed, max_new_tokens=5) for seed in (1, 1, 2))
    assert len(first) == 5
    assert first == second != other


def test_sampling_leaves_the_random_state_alone(tmp_path):
    model = tiny_model(tmp_path / "tiny")
    before = torch.random.get_rng_state()
    sample(model, ["Hello?"], seed=0, max_new_tokens=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_folder_that_holds_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OSError):
        tiny_model(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3"])
def test_a_tiny_model_loads_and_its_prompt_ids_are_a_prefix(tmp_path, family):
    path = tiny_model(tmp_path / "tiny", family, texts=["the quick brown fox"] * 3)
    tokenizer = AutoTokenizer.from_pretrained(path)
    chat = [{"role": "user", "content": "Grüße, fox?"}, {"role": "assistant", "content": "the quick answer"}]
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(chat, return_dict=False)
    assert whole[: len(prompt)] == prompt
    assert whole.count(tokenizer.eos_token_id) == 2
    assert whole[-1] == tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    logits = model(torch.tensor([whole])).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.5


def _sentences(text):
    """Clauses end with a full stop or a question mark and hold neither elsewhere."""
    return text.replace("?", ".").removesuffix(".").split(". ")


def test_contested_world_turns_every_edge_round(tmp_path):
    write_contested(tmp_path, seed=4, n_train=30, n_heldout=10)
    train, heldout = load(str(tmp_path), "train"), load(str(tmp_path), "test")
    assert (len(train.records), len(heldout.records)) == (60, 20)
    assert not {r.prompt for r in train.records} & {r.prompt for r in heldout.records}
    for asked, other in zip(train.records[::2], train.records[1::2], strict=True):
        assert asked.prompt == other.prompt and (asked.mask, other.mask) == (("T",), ("E",))
        assert [r.text for r in asked.responses] == [r.text for r in reversed(other.responses)]
        better, worse = (oracle(r.text) for r in asked.responses)
        assert (better["T"], better["E"], worse["T"], worse["E"]) == ("good", "bad", "bad", "good")
        assert all(better[d] == worse[d] for d in "AC")
