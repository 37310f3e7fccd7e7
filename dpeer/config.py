"""The one strict, frozen config tree of a training run. YAML in, resolved YAML out; unknown keys are errors."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dpeer.config_model import Lora as Lora
from dpeer.config_model import Model as Model
from dpeer.config_sources import GivenMap, Sources
from dpeer.section import NonNegative as NonNegative
from dpeer.section import Place
from dpeer.section import Positive as Positive
from dpeer.section import Section as Section

Tolerance = Annotated[float, Field(ge=0)]  # inf is allowed: an unconstrained dimension

ADAPTERS_LR = 2e-5
"""Low-rank adapters want ten to twenty times the rate of all weights, less for long runs (Schulman et al., "LoRA
Without Regret", 2025); the default for all weights is 1e-6."""
LONGEST_NAME = 160
"""Characters of a run's name: files that are named after it stay below the 255 bytes that file systems take."""


class Data(Section):
    train: Sources
    """Hub id, file (CSV / JSON / JSONL / Parquet) or folder with the training records; or a list of {path, weight,
    map}."""
    map: GivenMap = None
    """What the columns mean: a preset's name or a mapping; default: told from the columns where they leave no doubt."""
    heldout: Sources | None = None
    """Records for the certificate, looked at once, after training: a source like `train`, a share of the training
    records such as 10%, or `none`. Default: the test split of `train`, or 10% where it has none."""
    dual: Sources = "10%"
    """Records that move the multipliers and never the policy: a source like `train`, a share of the training records,
    or `none`."""
    max_tokens: int = Field(4096, ge=8)
    """Longest prompt + response, in tokens."""
    date: datetime.date | None = None
    """Day that is told to chat templates that ask for one; default: the day on which the run begins, kept by it."""
    end_of_turn: Place | None = None
    """Token that ends a response, for chat templates that write none (GLM: `<|user|>`); the export stops there.
    A template that ends responses by another token is refused."""
    reasoning: Literal["train", "drop"] = "train"
    """Thoughts of responses: trained with them, or left out, so that answers are trained as the chat template writes
    them without one."""
    overlong: Literal["drop", "cut_prompt"] = "drop"
    """Records longer than max_tokens: drop them, or cut the prompt from the left. Both are counted and reported."""


class Dual(Section):
    controller: str = "pi"
    """How multipliers follow the constraint values: `pi` (proportional-integral: the method of multipliers), `ascent`
    (gradient ascent), `nu_pi` (nu-PI, ICML 2024) or `pid` (PID, ICML 2020)."""
    evidence: Literal["split", "batch"] = "split"
    """What moves the multipliers: the dual split (`data.dual`), on which the policy never trains, or the batch."""
    records_per_step: int | None = Field(None, ge=1)
    """Records of the dual split that are scored in each step; default: as many as in the training batch."""
    aim: Literal["certificate"] | NonNegative = "certificate"
    """How far below its tolerance each constraint is held: as far as a proof on the certificate's records needs, or
    this much; 0 aims at the tolerance itself."""
    relaxed_cost: Tolerance = 0.25
    """Price of a violation for constraints that are found impossible to meet together: their multiplier is this times
    the violation. `inf` goes on enforcing them, at the cost of all other dimensions."""
    eta: Positive = 0.3
    """ascent, nu_pi and pid: step size of the multipliers per optimizer step."""
    ema: float = Field(0.5, ge=0, lt=1)
    """Memory of the smoothed statistics: 0 uses the last step only. `pi`, `ascent` and form `protect` read it."""
    max: Positive = 20.0
    """Upper bound of each multiplier."""
    dead_zone: NonNegative = 0.0
    """Multipliers stay put while the absolute constraint value is below this; 0 turns it off."""
    nu: float = Field(0.0, gt=-1, lt=1)
    """nu_pi: memory of the smoothed error xi."""
    kp: NonNegative | None = None
    """pi, nu_pi and pid: proportional gain; default 10 for pi, 1 for the others."""
    ki: NonNegative | None = None
    """pi, nu_pi and pid: integral gain; default 0.2 for pi, 1 for the others."""
    kd: NonNegative | None = None
    """pid: derivative gain; default 0."""
    options: dict[str, float] = Field({})
    """Numbers that a controller of your own asks for, by name."""


class Constraint(Section):
    form: str = "threshold"
    """What each dimension must satisfy (docs/method.md): `threshold` (loss level), `winrate` (share of pairs ranked
    wrongly), `worst` (the worst dimension first), `balance` (loss balance), `margin` (margin hinge), `protect` (no
    give-back)."""
    tolerance: Tolerance | dict[str, Tolerance] = 0.5
    """eps: one value for all dimensions or one per dimension; inf leaves a dimension unconstrained."""
    enforce: bool = True
    """false: measure and certify the constraints but keep every multiplier at 0 (the baselines of an ablation)."""
    slack: NonNegative = 0.0
    """margin form only: allowed mean hinge."""
    options: dict[str, float] = Field({})
    """Numbers that a form of your own asks for, by name."""


class Certificate(Section):
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Probability that no `satisfied` is false, and that no `violated` is."""
    bound: Positive = 6.0
    """Up to what an edge's loss (form margin: its hinge) counts: the mean of min(value, bound) is certified."""
    tolerance: Tolerance | dict[str, Tolerance] | None = None
    """eps that is certified, one value or one per dimension; default: the one that was trained for."""


class Objective(Section):
    kind: Literal["preference", "sft"] = "preference"
    """Preference optimization over edges, or maximum likelihood on golden responses only."""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """Edge loss on the margin."""
    beta: Positive = 0.1
    """Reward scale: r = beta * (log pi - log pi_ref)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """sigmoid only: assumed share of flipped preferences."""
    length_normalised: bool = False
    """Divide response log-probabilities by their token count."""
    golden_nll: NonNegative = 0.0
    """Weight of the anchor, the token-mean negative log-likelihood of golden responses, beside the primary weights'
    1: all weights of a step are divided by their sum."""
    primary: Literal["uniform", "pooled"] | dict[str, NonNegative] = "uniform"
    """Primary weights: 1/|D| each, in proportion to edge counts, or fixed by you."""
    constraint: Constraint = Constraint()
    dual: Dual = Dual()
    certificate: Certificate = Certificate()

    def constrained(self, dimensions: Sequence[str]) -> tuple[str, ...]:
        """Those with a finite tolerance; none where nothing is preferred."""
        given = self.constraint.tolerance
        eps = given if isinstance(given, dict) else dict.fromkeys(dimensions, given)
        preference = self.kind == "preference"
        return tuple(d for d in dimensions if preference and math.isfinite(eps.get(d, math.inf)))

    @model_validator(mode="after")
    def _smoothing_needs_sigmoid(self) -> Objective:
        if self.label_smoothing and self.loss != "sigmoid":
            given = f"label_smoothing ({self.label_smoothing})"
            raise ValueError(f"{given} applies to loss 'sigmoid' only, not '{self.loss}'")
        if isinstance(self.primary, dict) and not sum(self.primary.values()) > 0:
            raise ValueError("fixed primary weights must have a positive sum")
        return self


class Optimizer(Section):
    name: Literal["adamw", "cpu_adam"] = "adamw"
    """torch AdamW, or DeepSpeedCPUAdam (for optimizer state offloaded to host memory)."""
    lr: Positive = 1e-6
    """Peak learning rate. Where none is given, adapters (`model.lora`) get 2e-5, twenty times that of all weights, and
    a run that goes on keeps the one that it began with."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning-rate shape after warm-up; linear and cosine end at zero."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam moment decay rates."""
    eps: Positive = 1e-8
    """Adam denominator floor."""
    grad_clip: NonNegative = 1.0
    """Clip the global gradient norm to this; 0 turns clipping off."""

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= b < 1 for b in value):
            raise ValueError(f"betas must lie in [0, 1), got {value}")
        return value


class Training(Section):
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; give this or `epochs`."""
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Passes over the training records."""
    records_per_step: int = Field(32, ge=1)
    """Records (not pairs) in the global batch of one optimizer step."""
    tokens_per_pack: int = Field(8192, ge=8)
    """Forward tokens per micro-batch, of a rank or of the ranks that share it (`sequence_parallel`); a single larger
    record gets a pack of its own."""
    sequence_parallel: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Ranks that compute one pack together, each a part of its tokens, for records that are too long for one GPU.
    Divides the ranks and the attention heads. `auto`: the fewest of a node with which the longest record fits."""
    optimizer: Optimizer = Optimizer()
    checkpoint_every: int | None = Field(50, ge=1)
    """Steps between checkpoints; the last step is always saved. None: by time alone."""
    checkpoint_minutes: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Also save when so many minutes have passed since the last checkpoint was begun."""
    checkpoint_async: bool = True
    """Copy a checkpoint into the host's memory and write it while training goes on; a host with too little free memory
    for the copy writes first and trains then. False: always so."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints kept on disk."""
    keep: Literal["last", "best"] = "last"
    """The checkpoint that is certified and exported: the `last`, or the `best`, which has the lowest loss of its worst
    dimension on the dual split; that one stays on disk."""
    stop_when: Literal["never", "certified"] = "never"
    """`certified`: end at the first checkpoint at which the whole dual split proves every tolerance."""
    patience: int | None = Field(None, ge=1)
    """With `keep: best`: end when so many checkpoints in a row were no better than the best."""
    sample_every: int | None = Field(None, ge=1)
    """Steps between samples of the policy's greedy replies; also before the first and after the last. None: no
    samples."""
    sample_prompts: int = Field(3, ge=1)
    """Prompts that are answered each time, taken from the dual split, or else from the training records."""
    deterministic: bool = False
    """On GPUs: only kernels and NCCL algorithms that repeat to the last digit; slower. On the CPU they always do."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Where the curves go beside the run's own files. One that fails costs a warning, never the run."""
    wandb_project: str | None = None
    """Project of wandb, which it adds to `trackers`; the experiment of mlflow and project of trackio, else `dpeer`."""

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give exactly one of steps ({self.steps}) and epochs ({self.epochs})")
        judged = self.keep == "best" or self.stop_when == "certified"
        if self.checkpoint_every is None and (judged or self.checkpoint_minutes is None):
            raise ValueError(
                "checkpoint_every is none, but "
                + (
                    "keep: best and stop_when: certified judge the checkpoints of a schedule by steps"
                    if judged
                    else "checkpoint_minutes is none too, so that nothing would be saved before the end"
                )
                + ". Give the steps between checkpoints"
            )
        if self.patience and self.keep == "last":
            raise ValueError(
                f"patience ({self.patience}) counts checkpoints since the best one, but keep is last: the run would "
                "end late and export a worse checkpoint. Set training.keep=best, or leave patience out"
            )
        return self

    def at_rate(self, lr: float) -> Training:
        """With another learning rate, which counts as one that the recipe does not give."""
        optimizer = self.optimizer.model_copy(update={"lr": lr})
        optimizer.model_fields_set.discard("lr")
        return self.model_copy(update={"optimizer": optimizer})

    def total_steps(self, records: int) -> int:
        """Optimizer steps of the run over a training set of that many records."""
        return self.steps or max(1, math.ceil((self.epochs or 0) * records / self.records_per_step))


class Cluster(Section):
    address: str | None = None
    """Address of a running Ray cluster; default: a private one on this machine (or RAY_ADDRESS)."""
    policy_workers: int = Field(1, ge=1)
    """Ranks of the policy."""
    reference: Literal["workers", "colocated", "cache"] = "cache"
    """Where reference log-probs come from: own workers one step ahead, the policy's workers, or computed once."""
    reference_workers: int = Field(1, ge=1)
    """Ranks of the reference group: in mode workers, and in mode cache where the reference is not the model that is
    loaded to be trained, and in sweeps; otherwise the policy's ranks fill the cache."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray reserves per worker."""
    gpus_per_worker: Literal[0, 1, "auto"] = "auto"
    """GPUs per worker: 1, or 0 to train on the CPU; `auto` is 1 where the cluster has GPUs. The manifest says which."""
    engine: Literal["auto", "deepspeed", "plain"] = "auto"
    """What ranks train with: `deepspeed` shares weights and optimizer state among them (ZeRO-3), `plain` holds all of
    the model on each and takes less time per step. `auto`: plain for one rank, and for LoRA where the model fits; a
    run that goes on stays with the engine that it began with."""
    deepspeed: Place = "zero3"
    """DeepSpeed config of the policy: a name in ds_configs/ or a path to a JSON file."""
    reference_deepspeed: Place = "reference"
    """DeepSpeed config of the reference."""
    nodes: int | None = Field(None, ge=1)
    """Nodes that the cluster must have when the run starts; default: any number on which the workers fit."""
    preflight: bool = True
    """Begin a run with the quick checks of `dpeer preflight`; false starts it without them."""
    timeout_s: Positive = 1800.0
    """Longest silence of a worker or collective, in seconds, before the group is declared dead."""
    stall_timeout_s: Positive = 600.0
    """Longest time without a finished pack during a step or scoring, in seconds, before the stacks of all ranks are
    written down and the group is declared dead; loading and saving are bounded by timeout_s only."""
    join_timeout_s: Positive = 120.0
    """Longest time, in seconds, for the started workers of a group to reach each other and for one all-reduce."""
    placement_timeout_s: Positive = 300.0
    """Longest wait for a feasible placement, in seconds."""
    grace_s: Positive | None = None
    """Seconds between the pre-emption signal and the job's end: a save that takes longer is warned of. None: as
    DPEER_GRACE_S says, which dpeer's job scripts for Slurm set."""
    max_restarts: int = Field(3, ge=0)
    """Restarts of the worker groups from the last checkpoint before the run gives up."""

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _whole_gpus(cls, value: object) -> object:
        if isinstance(value, int | float) and value not in (0, 1):
            raise ValueError(
                f"a rank uses one GPU, got {value}: NCCL refuses two ranks on the same one, and a second would idle. "
                "Give 1, 0 (train on the CPU) or auto, and set the number of ranks by cluster.policy_workers"
            )
        return int(value) if isinstance(value, float) else value

    @property
    def on_gpus(self) -> bool:
        """False also for an `auto` that nobody has resolved (launcher/gpus.py)."""
        return self.gpus_per_worker == 1


class Config(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    """Run name: letters, digits, dot, dash, underscore; the run's folder is output_dir/name."""
    output_dir: Path = Path("runs")
    """Folder of all runs."""
    seed: int = Field(0, ge=0)
    """Seed of data order, initial adapters and everything else random."""
    model: Model
    data: Data
    objective: Objective = Objective()
    training: Training
    cluster: Cluster = Cluster()

    @field_validator("output_dir", mode="before")
    @classmethod
    def _some_folder(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise ValueError("is empty; give a folder, such as runs")
        return value

    @property
    def run_dir(self) -> Path:
        return self.output_dir / self.name

    @property
    def dual_records(self) -> int:
        """Records of the dual split that are scored in each step; 0 where there is no such split or no use for it."""
        if self.objective.kind == "sft" or self.data.dual == "none":
            return 0
        return self.objective.dual.records_per_step or self.training.records_per_step

    @property
    def reference_beneath(self) -> bool:
        """The reference is the model that the policy's adapters were added to."""
        return self.model.reference_beneath

    @property
    def reference_group(self) -> bool:
        """Ranks of their own compute the reference: beside the policy's, or before these."""
        mode = self.cluster.reference
        return mode == "workers" or (mode == "cache" and not self.model.reference_in_policy)

    @property
    def follows_split(self) -> bool:
        """Multipliers follow the dual split, and there are any to move."""
        objective = self.objective
        return self.dual_records > 0 and objective.constraint.enforce and objective.dual.evidence == "split"

    @property
    def rate_given(self) -> bool:
        """Whether the recipe says `training.optimizer.lr`."""
        return "lr" in self.training.optimizer.model_fields_set

    @model_validator(mode="after")
    def _rate_of_the_mode(self) -> Config:
        """Gives `training.optimizer.lr` its default for adapters: at the one for all weights they hardly move."""
        if self.model.lora is not None and not self.rate_given:
            object.__setattr__(self, "training", self.training.at_rate(ADAPTERS_LR))
        return self

    @model_validator(mode="after")
    def _end_can_be_judged(self) -> Config:
        certified = self.training.stop_when == "certified"
        best = ["training.keep=best"] if self.training.keep == "best" else []
        asked = best + (["training.stop_when=certified"] if certified else [])
        if asked and not self.dual_records:
            why = "objective.kind is sft" if self.objective.kind == "sft" else "data.dual is none"
            raise ValueError(
                f"{' and '.join(asked)} judges checkpoints on the dual split, and there is none in use ({why}). Give "
                "one (data.dual=10%, or a file) to a preference run, or leave this out"
            )
        tolerance = self.objective.constraint.tolerance
        lowest = min(tolerance.values(), default=math.inf) if isinstance(tolerance, dict) else tolerance
        if certified and math.isinf(lowest):
            raise ValueError(
                "training.stop_when=certified, but no dimension has a tolerance that could be proven "
                "(objective.constraint.tolerance is inf). Set one, or leave stop_when at never"
            )
        return self

    @model_validator(mode="after")
    def _evidence_exists(self) -> Config:
        enforced = self.objective.kind == "preference" and self.objective.constraint.enforce
        if enforced and self.objective.dual.evidence == "split" and self.data.dual == "none":
            raise ValueError(
                "objective.dual.evidence is split, but data.dual is none: give records for the multipliers (a share "
                "such as data.dual=10%, or a file), or let the training batch move them: objective.dual.evidence=batch"
            )
        return self
