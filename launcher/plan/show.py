"""A plan as tables for people, and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from dpeer.escape import markup
from dpeer.estimate.memory import FRAGMENTATION, GIB, Memory, Part, checkpoint_bytes, model_states, offloaded
from dpeer.estimate.throughput import HOST_LINK, all_to_all, tokenising
from dpeer.launcher.plan.planning import HFU, LINKS, Plan, Remedy
from dpeer.training.grace import grace_s, needed_s

ASSUMED = "assumed"
MIB = 2**20
EVEN = 0.9
"""Share of a step that ranks compute, below which it is said what helps."""


def show(plan: Plan, console: Console, cells: int, price: float | None) -> None:
    """Print the tables, the assumptions and the verdict."""
    w, request = plan.weights, plan.request
    trained = "all trained" if w.trained == w.total else f"{_count(w.trained)} trained"
    console.print(
        f"[bold]{markup(plan.config.name)}[/]  {markup(plan.config.model.path)}, "
        f"{_count(w.total)} parameters, {trained}"
        + (f"; {_count(plan.towers)} of towers frozen, not loaded" if plan.towers else "")
        + "\n"
        f"{request.nodes} x {request.gpus} {plan.gpu.name}, {plan.gpu.memory_gib:g} GiB each; "
        f"{plan.ranks} policy ranks"
        + (f" in groups of {plan.team} to a pack" if plan.team > 1 else "")
        + (f" + {plan.reference_ranks} reference ranks" if plan.reference_ranks else "")
        + f"; {plan.config.model.dtype}, {_engine(plan)}, "
        f"recompute {'on' if plan.config.model.gradient_checkpointing else 'off'}"
        + (", activations in the host's memory" if plan.config.model.offload_activations else "")
        + (f", MLPs in tiles of {plan.config.model.mlp_tile} tokens" if plan.config.model.mlp_tile else "")
    )
    if plan.zero.sharded:
        console.print(window(plan))
    console.print()
    console.print(_gpu_table(plan))
    console.print(_host_table(plan))
    console.print(_table("tokens and traffic", ("", "value", ""), _token_rows(plan)))
    console.print(
        _table("time and cost", ("", "one run", f"{cells} runs" if cells > 1 else ""), _cost_rows(plan, cells, price))
    )
    console.print("[bold]assumptions[/]")
    for line in assumptions(plan, price):
        console.print(f"  - {markup(line)}")


def verdict(plan: Plan, fixes: tuple[Remedy, ...]) -> Iterator[str]:
    """Lines with markup: green when everything fits, else red with what to change."""
    memory = plan.memory
    peak = f"{memory.high / GIB:.1f} of {plan.gpu.memory_gib:g} GiB per GPU"
    if plan.fits_gpu and plan.fits_host:
        yield f"[bold green]fits[/]: {peak}, {(plan.usable - memory.high) / GIB:.1f} GiB to spare"
    if memory.high > plan.usable:
        sure = memory.low > plan.usable
        word = "does not fit" if sure else "may not fit"
        least = f"at least {memory.low / GIB:.1f}, " if sure else ""
        yield f"[bold red]{word}[/]: {least}up to {peak}, at '{memory.peak_phase}' with packs of {plan.tokens} tokens"
    if plan.reference_memory and not plan.fits_reference:
        yield (
            f"[bold red]does not fit[/]: the reference needs up to {plan.reference_memory.high / GIB:.1f} GiB on each "
            f"of its {plan.reference_ranks} GPUs; more cluster.reference_workers need less each"
        )
    if not plan.fits_gpu:
        if fixes:
            yield "what would fit (each tried):"
            yield from (f"  {markup(f.change)}   {f.peak_gib:.1f} GiB" for f in fixes)
        else:
            yield "no single change makes it fit: take GPUs with more memory, or a smaller model."
    if not plan.fits_host:
        yield (
            f"[bold red]does not fit[/]: the host of rank 0 needs up to {plan.host.high / GIB:.0f} GiB, a node has "
            f"{plan.request.node_memory:g} (--node-memory). Nodes with more memory, or fewer ranks per node with an "
            "offload config."
        )


def assumptions(plan: Plan, price: float | None) -> Iterator[str]:
    """Everything in the tables that was not counted from the config."""
    config, request = plan.config, plan.request
    yield from plan.sources
    yield f"engine {plan.engine.name}: {plan.engine.why} (cluster.engine)"
    if plan.records.assumed and "estimated" not in plan.records.source:
        shown = plan.records.lengths[0]
        mean = sum(len(r.responses) - 1 for r in plan.records.lengths) / len(plan.records.lengths)
        yield (
            f"{len(plan.records.lengths)} records of {shown.prompt} prompt and {shown.responses[0]} response tokens, "
            f"{mean:.1f} rejects on average, all lengths equal (real ones vary, which unbalances ranks): give "
            "--prompt-tokens, --response-tokens, --rejects, --records, or a local data set"
        )
    default = ", the default: published ZeRO-3-class bf16 peaks on H100 are 43 % (70B) to 46 % (7B); none for DPO"
    share = (
        f"HFU {request.hfu:g} of {plan.machine.peak / 1e12:g} TFLOP/s{default if request.hfu == HFU else ''} (--hfu)"
    )
    yield f"{share}; recomputation counts as work"
    yield (
        f"links: {plan.gpu.node_link_gbit_s:g} Gbit/s per node (--network), "
        f"{plan.gpu.gpu_link_gbyte_s:g} GB/s into a GPU, "
        f"{LINKS:.0%} of it reached; GPU figures are vendors' data sheets"
    )
    yield (
        "hours: lower = traffic hidden behind arithmetic, upper = not at all; loading, checkpoints, held-out scoring "
        "and export come on top"
    )
    yield f"fragmentation {FRAGMENTATION:.0%} of all tensors, CUDA context and NCCL 1.5 GiB; these two are not measured"
    if plan.config.cluster.gpus_per_worker == 0:
        yield "the recipe trains on CPU (cluster.gpus_per_worker = 0); planned as if on these GPUs"
    else:
        cluster = config.cluster
        planned = {"policy_workers": plan.ranks}
        if cluster.reference == "cache" and config.reference_group:
            planned["reference_workers"] = plan.ranks  # before training, on the same GPUs
        if other := {name: n for name, n in planned.items() if getattr(cluster, name) != n}:
            yield (
                f"the recipe has {', '.join(f'{name} {getattr(cluster, name)}' for name in other)}; planned for all "
                f"GPUs: run it with {' '.join(f'--set cluster.{name}={n}' for name, n in other.items())}"
            )
    if plan.config.model.offload_activations:
        yield f"{HOST_LINK / 1e9:g} GB/s between a GPU and its host, each way; layers wait for what is copied"
    if plan.config.model.mlp_tile:
        yield "families with a norm on what an MLP gives (Gemma, OLMo) compute tiles a third time: not in the hours"
    if plan.zero.optimizer_on_host:
        yield "the optimizer step on the host and its transfers are not in the hours; pinned buffers may be rounded up"
    yield "the checkpoint is memory-mapped while it loads: page cache, not counted in the host's memory"
    if price is None:
        yield "no price given: --price"


def window(plan: Plan) -> str:
    """What ZeRO-3 may hold gathered, in parameters."""
    zero, whole = plan.zero, " at once" if plan.zero.whole_layers else ""
    return (
        f"ZeRO-3: up to {_count(zero.max_live)} parameters gathered, kept if used again within "
        f"{_count(zero.reuse_distance)}, {_count(zero.prefetch)} fetched ahead; layers of "
        f"{_count(plan.weights.layer)}{whole}"
    )


def _engine(plan: Plan) -> str:
    return markup(plan.config.cluster.deepspeed) if plan.zero.sharded else "plain engine"


def _gpu_table(plan: Plan) -> Table:
    table = Table(title="memory per GPU, GiB", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("at least", justify="right")
    table.add_column("up to", justify="right")
    table.add_column("", style="dim")
    for part in plan.memory.parts:
        table.add_row(*_part(part))
    table.add_section()
    table.add_row(
        f"[bold]peak ('{plan.memory.peak_phase}')[/]",
        f"[bold]{plan.memory.low / GIB:.1f}[/]",
        f"[bold {'green' if plan.fits_gpu else 'red'}]{plan.memory.high / GIB:.1f}[/]",
        f"of {plan.gpu.memory_gib:g}; packs of {plan.tokens} tokens",
    )
    if reference := plan.reference_memory:
        table.add_row("  of a reference rank", *_range(reference), f"{plan.reference_ranks} of them; forward only")
    if plan.largest_record:
        peak = plan.largest_record
        table.add_row("  with the packs of this data", *_range(peak), f"at most {plan.batch.largest_pack} tokens")
    states, _ = model_states(plan.config, plan.weights, plan.zero, plan.ranks, plan.request.gpus)
    table.add_row(
        "  of it model states",
        "",
        f"{states / GIB:.1f}",
        "as DeepSpeed's estimator counts: shards, largest module with gradient" if plan.zero.sharded else "not shared",
    )
    budget = f"{plan.budget}" if plan.budget else "none"
    table.add_row(
        "largest training.tokens_per_pack", "", budget, f"the recipe has {plan.config.training.tokens_per_pack}"
    )
    for n, tokens in plan.contexts if len(plan.contexts) > 1 else ():
        together = f"training.sequence_parallel={n}" + (", as planned" if n == plan.team else "")
        table.add_row(f"largest record on {n} GPU{'s' * (n > 1)} together, tokens", "", f"{tokens or 'none'}", together)
    return table


def _host_table(plan: Plan) -> Table:
    table = Table(title="\nhost memory, GiB", title_justify="left", box=None, pad_edge=False)
    for name in ("", "at least", "up to", ""):
        table.add_column(name, justify="right" if name else "left", style=None)
    for part in plan.host.each_node:
        table.add_row(*_part(part))
    for part in plan.host.export:
        table.add_row(*_part(part))
    if plan.host.saving:
        table.add_row(*_part(plan.host.saving))
    given = plan.request.node_memory
    color = "green" if plan.fits_host else "red"
    table.add_row(
        "[bold]node of rank 0, during the export[/]",
        "",
        f"[bold {color if given else 'default'}]{plan.host.high / GIB:.0f}[/]",
        f"of {given:g}" if given else "not checked: --node-memory",
    )
    return table


def _token_rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    batch, training = plan.batch, plan.config.training
    yield "records, steps", f"{len(plan.records.lengths)}, {plan.steps}", f"{training.records_per_step} records a step"
    yield "forward tokens per step, trees", f"{batch.tokens:,.0f}", "each prompt once, each response once"
    if scored := plan.config.dual_records:
        measured = f"{batch.tokens * scored / training.records_per_step:,.0f}"
        yield "  of the dual split, forward only", measured, f"{scored} records a step"
    if batch.pairwise:
        ratio = f"{batch.pairwise / batch.tokens:.1f} times as many, without its padding"
        yield "the same as separate pairs", f"{batch.pairwise:,.0f}", ratio
    yield "micro-steps per step", f"{batch.micro_steps:.1f}", f"packs of at most {training.tokens_per_pack} tokens"
    if plan.ranks > 1:
        even = plan.fill >= EVEN
        yield "ranks compute, of a step", f"[{'green' if even else 'yellow'}]{plan.fill:.0%}[/]", _fill_words(plan)
    seconds, size = tokenising(plan.records.lengths)
    yield "tokenising, once", f"{seconds:,.0f} core s", f"on all cores of a node; {size / MIB:,.0f} MiB on disk"
    saved = checkpoint_bytes(plan.config, plan.weights, frozen=plan.zero.sharded)
    yield "a checkpoint", f"{saved / 1e9:,.1f} GB", saves_words(plan, saved)
    moved = plan.traffic
    often, what = ("micro-step", "gathers and reduce-scatter") if plan.zero.sharded else ("step", "sum of gradients")
    yield f"traffic per {often}, into a GPU", f"{moved.into_gpu / 1e9:,.1f} GB", what
    if moved.into_node:
        yield "  of it between nodes", f"{moved.into_node / 1e9:,.1f} GB", "into one node"
    if plan.team > 1:
        swapped = all_to_all(plan.config, plan.weights, batch, plan.team, plan.machine).into_gpu
        yield "  and of groups that share a pack", f"{swapped / 1e9:,.1f} GB", "all-to-alls of a micro-step"
    if away := 2 * offloaded(plan.config, plan.weights, batch.per_micro_step):
        what = f"activations of a micro-step; {plan.time.copies:.1f} s of a step"
        yield "to the host's memory and back, per GPU", f"{away / 1e9:,.1f} GB", what
    if moved.into_gpu:
        enough = batch.per_micro_step >= plan.break_even
        verdict = "traffic can hide" if enough else "traffic rules: more records a step, or fewer GPUs"
        color = "green" if enough else "yellow"
        yield "tokens per GPU and micro-step", f"[{color}]{batch.per_micro_step:,.0f}[/]", verdict
        yield "  break-even", f"{plan.break_even:,.0f}", "arithmetic takes as long as traffic"


def _fill_words(plan: Plan) -> str:
    if plan.fill >= EVEN:
        return "the rest waits for the busiest rank"
    shared = f"training.sequence_parallel above {plan.team}, so that GPUs share records"
    return f"the rest waits for the busiest rank: more records a step, or {shared}"


def saves_words(plan: Plan, saved: int) -> str:
    """How often it is written, and how fast that must be to end before a pre-empted job does."""
    training = plan.config.training
    often = [f"{training.checkpoint_every} steps"] if training.checkpoint_every else []
    often += [f"{training.checkpoint_minutes:g} minutes"] if training.checkpoint_minutes else []
    grace = grace_s(plan.config)
    if grace is None:
        return f"every {' or '.join(often)}; its speed is not compared: cluster.grace_s"
    left = grace - plan.time.high
    if left <= 0:
        return f"every {' or '.join(often)}; a step alone takes the grace time of {grace:g} s"
    needed = needed_s(plan.config, 1.0) * saved / left / 1e9
    return f"every {' or '.join(often)}; at least {needed:.2f} GB/s for a grace time of {grace:g} s"


def _cost_rows(plan: Plan, cells: int, price: float | None) -> Iterator[tuple[str, str, str]]:
    many = cells > 1

    def row(name: str, one: tuple[float, float], all_: tuple[float, float], form: str) -> tuple[str, str, str]:
        return name, _span(one, form), _span(all_, form) if many else ""

    step = (plan.time.low, plan.time.high)
    yield "seconds per step", _span(step, ".1f"), ""
    hours = plan.run_hours
    yield row("hours of training", hours, (hours[0] * cells, hours[1] * cells), ",.2f")
    if plan.reference:
        yield row("hours of reference, once", plan.reference_hours, plan.reference_hours, ",.2f")
    yield row("GPU-hours", plan.gpu_hours(1), plan.gpu_hours(cells), ",.1f")
    if price is not None:
        one, all_ = ((a * price, b * price) for a, b in (plan.gpu_hours(1), plan.gpu_hours(cells)))
        yield row(f"cost at {price:g} per GPU-hour", one, all_, ",.0f")


def _table(title: str, columns: tuple[str, str, str], rows: Iterator[tuple[str, str, str]]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i == 1 or (name and i) else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _part(part: Part) -> tuple[str, str, str, str]:
    note = "; ".join(filter(None, (part.note, ASSUMED if part.assumed else "")))
    return (part.name, *_range(part), note)


def _range(sizes: Part | Memory) -> tuple[str, str]:
    return f"{sizes.low / GIB:.1f}", f"{sizes.high / GIB:.1f}"


def _span(values: tuple[float, float], form: str) -> str:
    low, high = (format(v, form) for v in values)
    return low if low == high else f"{low} to {high}"


def _count(n: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{letter}"
    return str(n)


def as_data(plan: Plan, cells: int, price: float | None, fixes: tuple[Remedy, ...]) -> dict[str, Any]:
    """The plan as JSON-safe builtins; memory in bytes, times in seconds and hours."""

    def parts(which: tuple[Part, ...]) -> list[dict[str, Any]]:
        return [{"name": p.name, "low": p.low, "high": p.high, "assumed": p.assumed} for p in which]

    states, on_host = model_states(plan.config, plan.weights, plan.zero, plan.ranks, plan.request.gpus)
    return {
        "recipe": plan.config.name,
        "engine": plan.engine.name,
        "fits": plan.fits_gpu and plan.fits_host,
        "cluster": {"nodes": plan.request.nodes, "gpus": plan.request.gpus, "gpu": plan.gpu.name, "ranks": plan.ranks},
        "parameters": {"total": plan.weights.total, "trained": plan.weights.trained, "towers": plan.towers},
        "zero3": {
            "max_live_parameters": plan.zero.max_live,
            "max_reuse_distance": plan.zero.reuse_distance,
            "prefetch_bucket_size": plan.zero.prefetch,
        }
        if plan.zero.sharded
        else None,
        "gpu_memory": {
            "parts": parts(plan.memory.parts),
            "peak_phase": plan.memory.peak_phase,
            "low": plan.memory.low,
            "high": plan.memory.high,
            "usable": plan.usable,
            "pack_tokens": plan.tokens,
            "model_states": states,
            "model_states_on_host": on_host,
        },
        "host_memory": {
            "each_node": parts(plan.host.each_node),
            "export": parts(plan.host.export),
            "high": plan.host.high,
        },
        "largest_tokens_per_pack": plan.budget,
        "sequence_parallel": plan.team,
        "largest_record": {str(n): tokens for n, tokens in plan.contexts},
        "tokens_per_step": {"tree": plan.batch.tokens, "pairwise": plan.batch.pairwise},
        "tokenising": dict(zip(("core_seconds", "bytes"), tokenising(plan.records.lengths), strict=True)),
        "micro_steps": plan.batch.micro_steps,
        "tokens_per_micro_step": plan.batch.per_micro_step,
        "fill": plan.fill,
        "break_even_tokens": plan.break_even,
        "traffic_per_micro_step": {"into_gpu": plan.traffic.into_gpu, "into_node": plan.traffic.into_node},
        "steps": plan.steps,
        "seconds_per_step": [plan.time.low, plan.time.high],
        "gpu_hours": {"one_run": list(plan.gpu_hours(1)), "cells": cells, "all_cells": list(plan.gpu_hours(cells))},
        "cost": None if price is None else [h * price for h in plan.gpu_hours(cells)],
        "would_fit": [{"change": f.change, "peak_gib": f.peak_gib} for f in fixes],
        "assumptions": list(assumptions(plan, price)),
    }
