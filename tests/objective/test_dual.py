"""Controllers step by step, state serialisation, and the rules about what is kept."""

import json
import math
from dataclasses import fields, replace

import cooper
import pytest
import torch

from dpeer.config import Constraint, Dual, Objective
from dpeer.errors import CheckpointError, ConfigError, DpeerError
from dpeer.objective.constraints import build_constraints
from dpeer.objective.dual import DualState, initial_state, update
from dpeer.objective.statistics import DIM_FIELDS, edge_statistics, summarise

DIMS = ("A", "T")
CONTROLLERS = ["pi", "ascent", "nu_pi", "pid"]


def summary_of(*losses):
    """A summary with the given mean losses exactly (one edge each); None: no edges."""
    table = torch.zeros(len(DIM_FIELDS), len(losses), dtype=torch.float64)
    for d, loss in enumerate(losses):
        if loss is not None:
            table[DIM_FIELDS.index("edges"), d] = 1
            table[DIM_FIELDS.index("loss"), d] = loss
    return summarise(table)


def run(objective, path):
    """Multipliers after each step of a path of losses, and the last state."""
    constraints = build_constraints(objective.constraint, DIMS)
    state, seen = initial_state(constraints, objective), []
    for losses in path:
        state = update(state, constraints, objective, summary_of(*losses))
        seen.append(state.multipliers.tolist())
    return seen, state


def tensors(state):
    for f in fields(DualState):
        value = getattr(state, f.name)
        if isinstance(value, torch.Tensor):
            yield f.name, value
        elif isinstance(value, dict):
            yield from ((f"{f.name}.{name}", inner) for name, inner in value.items())


def objective_with(tolerance=0.5, form="threshold", **dual):
    return Objective(constraint=Constraint(form=form, tolerance=tolerance), dual=Dual(**dual))


PATH = [(0.9, 0.4), (0.7, 0.8), (1.1, 0.3), (0.2, 0.6), (0.45, 0.9), (0.8, 0.55)]


def test_ascent_by_hand():
    seen, _ = run(objective_with(controller="ascent", eta=0.5, ema=0.5, max=0.3), [(0.9, 0.4), (0.7, 0.4), (0.1, 0.4)])
    # g_A = 0.4, 0.2, -0.4; g_hat = 0.4, 0.3, -0.05; lambda = 0.2, 0.35 -> cap 0.3, 0.275
    assert [s[0] for s in seen] == pytest.approx([0.2, 0.3, 0.275])
    assert [s[1] for s in seen] == [0, 0, 0]


def test_pid_by_hand():
    objective = objective_with(controller="pid", eta=1.0, kp=2.0, ki=0.5, kd=3.0)
    seen, _ = run(objective, [(0.6, 0.1), (0.8, 0.1), (0.55, 0.1)])
    # g = 0.1, 0.3, 0.05; I = 0.05, 0.2, 0.225; P = 0.2, 0.6, 0.1; D = 0 (no past), 0.6, 0 (falling)
    assert [s[0] for s in seen] == pytest.approx([0.25, 1.4, 0.325])


def test_pid_with_integral_only_is_ascent():
    pid, _ = run(objective_with(controller="pid", eta=0.3, kp=0.0, ki=1.0, kd=0.0), PATH)
    ascent, _ = run(objective_with(controller="ascent", eta=0.3, ema=0.0), PATH)
    assert pid == ascent


@pytest.mark.filterwarnings("ignore:nuPI optimizer instantiated with negative EMA")
@pytest.mark.parametrize(("nu", "kp", "ki"), [(0.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.7, 5.0, 0.5), (-0.4, 2.0, 1.0)])
def test_nu_pi_equals_cooper(nu, kp, ki):
    """Step by step against the authors' optimizer, with xi_{-1} = 0 and the multiplier projected to >= 0."""
    generator = torch.Generator().manual_seed(3)
    losses = 0.5 + torch.randn(60, 2, generator=generator, dtype=torch.float64)
    seen, _ = run(objective_with(controller="nu_pi", eta=0.2, nu=nu, kp=kp, ki=ki, max=1e6), losses.tolist())
    multiplier = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    oracle = cooper.optim.nuPI(
        [multiplier],
        lr=0.2,
        Kp=torch.tensor(kp, dtype=torch.float64),
        Ki=torch.tensor(ki, dtype=torch.float64),
        ema_nu=nu,
        init_type=cooper.optim.nuPIInitType.ZEROS,
        maximize=True,
    )
    for row, ours in zip(losses, seen, strict=True):
        multiplier.grad = row - 0.5
        oracle.step()
        with torch.no_grad():
            multiplier.clamp_(min=0)
        assert ours == pytest.approx(multiplier.tolist(), rel=1e-12, abs=1e-14)
    assert max(max(s) for s in seen) > 0.1


def test_optimistic_ascent():
    """nu = 0, kp = ki = 1: lambda + eta (2 g_t - g_{t-1})."""
    seen, _ = run(objective_with(controller="nu_pi", eta=0.1, nu=0.0, kp=1.0, ki=1.0), [(1.0, 1.0), (1.2, 1.0)])
    assert seen[1][0] - seen[0][0] == pytest.approx(0.1 * (2 * 0.7 - 0.5))


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_unobserved_dimensions_keep_everything(controller):
    objective = objective_with(controller=controller, kd=1.0)
    constraints = build_constraints(objective.constraint, DIMS)
    _, before = run(objective, PATH[:3])
    after = update(before, constraints, objective, summary_of(0.9, None))
    for name, value in tensors(after):
        if name != "conflict.weight":  # an average over steps, seen or not
            assert torch.equal(value[1:], dict(tensors(before))[name][1:]), name
    assert after.step == before.step + 1 and after.multipliers[0] != before.multipliers[0]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_an_infinite_tolerance_never_gets_a_multiplier(controller):
    seen, state = run(objective_with({"A": 0.1, "T": math.inf}, controller=controller), PATH)
    assert all(s[1] == 0 for s in seen) and seen[-1][0] > 0
    assert state.observations.tolist() == [6, 0]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_dead_zone_freezes_multipliers(controller):
    objective = objective_with(controller=controller, dead_zone=0.25, ema=0.0)
    seen, _ = run(objective, [(0.9, 0.5), (0.7, 0.5), (0.3, 0.5), (0.9, 0.5)])  # g_A = 0.4, 0.2, -0.2, 0.4
    assert seen[0][0] > 0 and seen[0] == seen[1] == seen[2] and seen[3][0] != seen[2][0]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_multipliers_stay_in_bounds_and_recover_from_the_cap(controller):
    objective = objective_with(controller=controller, eta=1.0, max=2.0)
    seen, state = run(objective, [(3.0, 0.1)] * 20)
    assert all(0 <= x <= 2 for s in seen for x in s)
    assert seen[-1] == [2.0, 0.0] and state.saturated.tolist() == [True, False]
    later, state = run(objective, [(3.0, 0.1)] * 20 + [(0.1, 0.1)] * 10)
    assert later[-1][0] == 0 and not state.saturated.any()  # no wind-up


def test_protect_remembers_the_lowest_level_that_is_proven():
    """Two records per step: se = |difference| / 2 of the two losses; the bar is smoothed loss + 2 se of it."""
    objective = objective_with(0.1, "protect", controller="ascent", ema=0.5, eta=1.0)
    constraints = build_constraints(objective.constraint, DIMS)
    state = initial_state(constraints, objective)
    for losses in ([0.8, 0.8], [0.4, 0.4], [0.9, 0.1]):  # exact, exact, noisy
        losses = torch.tensor(losses, dtype=torch.float64)
        table = edge_statistics(losses, losses, losses, torch.zeros(2).long(), torch.arange(2), 2)
        state = update(state, constraints, objective, summarise(table))
    # smoothed 0.8, 0.6, 0.55; errors of it 0, 0, 0.4 / 2: the last level is not proven to be lower
    assert state.form["loss"][0].item() == pytest.approx(0.55)
    assert state.form["best"].tolist() == pytest.approx([0.6, math.inf])


def test_protect_does_not_ratchet_on_noise():
    """A constant loss of 0.5: its best stays near 0.5 however long the noise goes on; the minimum alone sinks."""
    objective = objective_with(0.1, "protect", ema=0.5)
    constraints = build_constraints(objective.constraint, DIMS[:1])
    generator = torch.Generator().manual_seed(4)
    state, smoothed, lowest = initial_state(constraints, objective), None, math.inf
    for _ in range(1500):
        losses = 0.5 + 0.3 * torch.randn(8, generator=generator, dtype=torch.float64)
        table = edge_statistics(losses, losses, losses, torch.zeros(8).long(), torch.arange(8), 1)
        state = update(state, constraints, objective, summarise(table))
        smoothed = losses.mean() if smoothed is None else 0.5 * smoothed + 0.5 * losses.mean()
        lowest = min(lowest, float(smoothed))
    assert lowest < 0.33
    assert 0.4 < state.form["best"].item() < 0.55


def test_sft_leaves_the_multipliers_alone():
    objective = Objective(kind="sft")
    seen, state = run(objective, PATH)
    assert seen[-1] == [0, 0] and state.step == len(PATH)


def test_a_diverged_loss_is_named():
    objective = objective_with()
    constraints = build_constraints(objective.constraint, DIMS)
    with pytest.raises(DpeerError, match=r"the loss of T is not finite in step 1.*lower training"):
        update(initial_state(constraints, objective), constraints, objective, summary_of(0.5, math.nan))


def test_fixed_weights_are_checked_at_the_start():
    objective = Objective(primary={"A": 1.0, "t": 1.0})
    with pytest.raises(ConfigError, match=r"'t'.*the data has A, T"):
        initial_state(build_constraints(objective.constraint, DIMS), objective)


def awkward_state():
    """A state whose every number is hard to print and differs from its default."""
    values = torch.tensor([0.1, 1 / 3], dtype=torch.float64)
    return DualState(
        step=7,
        multipliers=values,
        saturated=torch.tensor([True, False]),
        modest=torch.tensor([False, True]),
        relaxed=torch.tensor([True, True]),
        observations=torch.tensor([2**53 + 1, 3]),
        smoothed=-values,
        spread=values.square(),
        controller={"xi": values * 1e-310, "previous": values + 2.0**-52},
        form={"best": torch.tensor([math.inf, -0.0], dtype=torch.float64)},
        conflict={"level": values * math.pi},
    )


def test_round_trip_through_json_loses_nothing():
    state = awkward_state()
    back = DualState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False)))
    assert back.step == state.step
    for (name, ours), (other, theirs) in zip(tensors(state), tensors(back), strict=True):
        assert name == other and theirs.dtype == ours.dtype and torch.equal(theirs, ours), name
        assert torch.equal(theirs.double().signbit(), ours.double().signbit()), name
    assert back.digest() == state.digest()


def test_initial_state_round_trips_with_no_constraints_at_all():
    objective = objective_with(form="balance")
    state = initial_state(build_constraints(objective.constraint, ("A",)), objective)
    back = DualState.from_dict(state.to_dict())
    assert back.saturated.dtype == torch.bool and back.multipliers.shape == (0,)
    assert back.digest() == state.digest()


def test_resumed_updates_are_bitwise_equal():
    objective = objective_with(controller="pid", kd=0.5)
    constraints = build_constraints(objective.constraint, DIMS)
    _, middle = run(objective, PATH[:3])
    _, whole = run(objective, PATH)
    resumed = DualState.from_dict(json.loads(json.dumps(middle.to_dict())))
    for losses in PATH[3:]:
        resumed = update(resumed, constraints, objective, summary_of(*losses))
    assert resumed.digest() == whole.digest()


def test_digest_sees_every_field_and_the_last_bit():
    state = awkward_state()
    digests = {state.digest(), replace(state, step=8).digest()}
    for name, value in tensors(state):
        changed = value.clone()
        if value.dtype == torch.float64:
            changed[1] = torch.nextafter(value[1], torch.tensor(9.0, dtype=torch.float64))
        else:
            changed[1] = ~value[1] if value.dtype == torch.bool else value[1] + 1
        field, _, inner = name.partition(".")
        new = {**getattr(state, field), inner: changed} if inner else changed
        digests.add(replace(state, **{field: new}).digest())
    assert len(digests) == 2 + len(list(tensors(state)))
    assert all(0 <= x < 2**48 and int(float(x)) == x for x in digests)


@pytest.mark.parametrize("damage", ["missing", "unknown", "garbled"])
def test_a_damaged_state_is_refused(damage):
    data = awkward_state().to_dict()
    if damage == "missing":
        del data["spread"]
    elif damage == "unknown":
        data["momentum"] = data["spread"]
    else:
        data["spread"] = {"dtype": "float64", "values": ["zebra"]}
    with pytest.raises(CheckpointError, match="dual state"):
        DualState.from_dict(data)


def test_worst_case_weights_outlast_a_batch_without_their_dimension():
    """A has the larger loss; a step that shows only T must not hand A's weight to T."""
    objective = objective_with(0.0, "worst")
    before, state = run(objective, [(0.9, 0.4)] * 5)
    after = update(state, build_constraints(objective.constraint, DIMS), objective, summary_of(None, 0.4)).multipliers
    assert before[-1][0] > 0.9 and after[0] > 0.9 and float(after.sum()) == pytest.approx(1)
