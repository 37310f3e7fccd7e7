"""How an exported model generates: the base's settings, ends of turn always among its end tokens."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from dpeer.data.tokenize import TokenTree
from dpeer.model.families import own_attention
from dpeer.model.shape import token_ids

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def generation(
    path: str, revision: str | None, shape: PretrainedConfig, ends: Collection[int]
) -> tuple[GenerationConfig, list[str]]:
    """The base's generation config, less what contradicts itself, with the token ids `ends`; and what was mended, in
    words. A base without one gives the token ids of its config.json."""
    notes = []
    try:
        base = GenerationConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError, TypeError, AttributeError):
        base = GenerationConfig.from_model_config(shape)
    fields: dict[str, Any] = base.to_diff_dict()
    given = token_ids(fields.get("eos_token_id"))
    added = [i for i in sorted(ends) if i not in given]
    stops = [i for i in given if i >= 0] + added
    kept: dict[str, Any] = {
        k: v for k in TOKENS if k != "eos_token_id" and isinstance(v := fields.get(k), int) and v >= 0
    }
    kept |= {"eos_token_id": stops[0] if len(stops) == 1 else stops} if stops else {}
    rest = {k: v for k, v in fields.items() if k not in (*TOKENS, "transformers_version", "_from_model_config")}
    greedy = {k: v for k, v in rest.items() if k not in SAMPLING}
    for settings in (rest, greedy, {}):
        if made := _sound(settings | kept):
            break
    assert made is not None  # token ids alone contradict nothing
    if left_out := sorted(set(rest) - set(settings)):
        notes.append(f"export: left out {', '.join(left_out)} of the base's generation_config.json: they contradict it")
    if added and given:
        notes.append(f"export: added end-of-turn token {', '.join(map(str, added))} to those that end a generation")
    return made, notes


@torch.no_grad()
def unstopped(model: PreTrainedModel, folder: Path, tree: TokenTree) -> str | None:
    """Why generation with the exported settings does not stop where the record's golden response ends; None: it does.

    Begins before the last token of that response, and makes the model say it, whatever it has learnt.
    """
    response = tree.responses[tree.golden]
    model.set_attn_implementation(own_attention(model.config))
    model.generation_config = GenerationConfig.from_pretrained(folder)
    begun = torch.tensor([[*tree.prompt, *response[:-1]]])
    made = model.generate(
        begun,
        attention_mask=torch.ones_like(begun),
        prefix_allowed_tokens_fn=lambda *_: [response[-1]],
        max_new_tokens=2,
        min_new_tokens=0,
        do_sample=False,
        synced_gpus=False,  # one rank reloads; the others wait elsewhere
    )
    said = made[0, begun.shape[1] :].tolist()
    return None if said == [response[-1]] else f"it goes on after token {response[-1]}, which ends a response: {said}"


def _sound(settings: dict[str, Any]) -> GenerationConfig | None:
    """The config, or None where transformers would refuse to save it."""
    try:
        made = GenerationConfig(**settings)
        made.validate(strict=True)
    except (ValueError, TypeError, AttributeError):
        return None
    return made
