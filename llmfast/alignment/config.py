"""The configurations of alignment runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmfast.data.config import PreferenceDataConfig, PromptDataConfig
from llmfast.finetuning.config import FinetuningConfig, SupervisedConfig
from llmfast.models.config import DecoderConfig
from llmfast.training.config import TrainingConfig

PairLossName = Literal[
    "sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo", "nca", "bco", "sppo", "apo_zero", "apo_down",
    "discopop", "aot", "aot_unpaired", "kto", "sft", "simpo", "cpo", "orpo",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def _preference_training() -> TrainingConfig:
    """Few steps at a low rate: the model is to change little."""
    return TrainingConfig(
        steps=200,
        batch_size=16,
        learning_rate=1e-4,
        weight_decay=0.0,
        evaluate_every=50,
        checkpoint_every=100,
        sample_every=100,
    )


@dataclass
class PreferenceConfig(FinetuningConfig):
    """One run that trains a model on preference pairs: DPO and its relatives."""

    losses: dict[PairLossName, float] = field(default_factory=lambda: {"sigmoid": 1.0})
    """Losses by name, each with its weight in the sum. sigmoid (DPO), sigmoid_norm (per token), robust, hinge, ipo,
    exo, nca, bco, sppo, apo_zero, apo_down, discopop, aot, aot_unpaired and kto compare with the reference; simpo, cpo
    and orpo need none; sft is the cross entropy of the chosen answers."""
    beta: float = 0.1
    """How strongly the model is held to the reference."""
    smoothing: float = 0.0
    """Share of pairs taken to be labeled the wrong way round (sigmoid, robust, exo, aot, simpo, cpo)."""
    margin: float = 0.5
    """By how much the reward of the chosen answer shall exceed the other (simpo)."""
    temperature: float = 0.05
    """Of the blend of discopop."""
    divergence: Divergence = "reverse_kl"
    """The f-divergence that holds the model to the reference, other than DPO's reverse_kl (f-DPO)."""
    alpha: float = 0.5
    """Of the divergence alpha."""
    reference: Literal["precompute", "adapter", "copy"] = "precompute"
    """Where the reference's log-probabilities come from. precompute: computed for all pairs before the first step, and
    kept with the data. adapter: the model without its adapter, at each step. copy: a frozen copy, at each step."""
    bad_weight: float = 1.0
    """data.form judged: what a bad answer counts, where a good one counts 1."""
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=_preference_training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.losses:
            raise ValueError("losses is empty: name at least one, such as sigmoid")
        if self.data.form == "steps":
            raise ValueError("data.form steps is for llmfast reward: dpo compares whole answers")
        if self.data.form == "judged" and set(self.losses) != {"kto"}:
            named = ", ".join(self.losses)
            raise ValueError(
                f"data.form judged has no pairs, which the losses {named} compare: set losses to kto alone"
            )
        if not self.bad_weight > 0:
            raise ValueError(f"bad_weight must be positive, got {self.bad_weight}")
        if self.reference == "adapter" and self.adapter == "none":
            raise ValueError("reference adapter needs adapter lora or qlora, which is left out for the reference")
        if self.training.context_warmup:
            raise ValueError("training.context_warmup is for pretraining: pairs are not cut into rows")


@dataclass
class RewardConfig(FinetuningConfig):
    """One run that trains a reward model: on preference pairs, or on answers or steps that were judged."""

    centering: float = 0.01
    """data.form pairs: weight of the loss that keeps rewards around 0; 0 for none."""
    margin: float = 0.0
    """data.form pairs: by how much the reward of the chosen answer shall exceed the other."""
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=_preference_training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centering < 0 or self.margin < 0:
            raise ValueError(f"centering {self.centering} and margin {self.margin} must be 0 or more")
        if self.data.form != "pairs" and self.margin:
            raise ValueError(
                f"margin {self.margin} is between two answers: with data.form {self.data.form} leave it out"
            )
        if self.training.context_warmup:
            raise ValueError("training.context_warmup is for pretraining: pairs are not cut into rows")


@dataclass
class DistillationConfig(SupervisedConfig):
    """One run that trains a model to answer as another one does."""

    teacher: str | None = None
    """The model to learn from, with the same tokenizer: a run (its newest checkpoint), a checkpoint, or a Hugging Face
    folder."""
    divergence: Literal["forward", "reverse", "js"] = "forward"
    """What is minimized for each token of an answer. forward: KL(teacher ‖ student), which covers all that the teacher
    may say; reverse: KL(student ‖ teacher), which keeps to what it mostly says; js: between both."""
    beta: float = 0.5
    """js: the teacher's share of the mixture that both are compared with."""
    temperature: float = 1.0
    """Softens both distributions; the divergence is multiplied by its square."""
    hard: float = 0.0
    """Share of the loss that is the cross entropy of the answers."""
    answers: Literal["data", "teacher"] = "data"
    """Whose answers are learned from. data: those of the examples; teacher: its own likeliest ones to the same prompts,
    written once before the first step (sequence-level distillation; with hard 1 the teacher's text alone counts)."""
    on_policy: float = 0.0
    """Share of the steps on answers that the student samples itself (GKD); data.packing must be none."""
    max_answer: int = 128
    """Most tokens of an answer that the teacher writes or the student samples."""
    top_k: int | None = None
    """Compute the teacher's k likeliest tokens at each target once, before the first step, and keep them with the data:
    the teacher is in no memory while the student trains. What is left of its probability counts as one more token.
    With divergence forward and data.packing none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must be between 0 and 1, got {self.beta}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not 0 <= self.hard <= 1:
            raise ValueError(f"hard is a share, from 0 to 1; got {self.hard}")
        if not 0 <= self.on_policy <= 1:
            raise ValueError(f"on_policy is a share, from 0 to 1; got {self.on_policy}")
        for name in ("max_answer", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._check_answers()

    def _check_answers(self) -> None:
        if (self.on_policy or self.answers == "teacher") and self.data.trained == "everything":
            raise ValueError("on_policy and answers teacher need prompts: with data.trained everything there are none")
        if self.data.packing != "none" and (self.on_policy or self.top_k is not None):
            setting = "on_policy" if self.on_policy else "top_k"
            raise ValueError(f"{setting} needs one example in each row: set data.packing to none")
        if self.on_policy and self.hard:
            raise ValueError(f"hard {self.hard} is for answers that are given: with on_policy set it to 0")
        if self.top_k is None:
            return
        if self.on_policy:
            raise ValueError("top_k keeps what the teacher says of given answers: with on_policy leave it out")
        if self.divergence != "forward":
            raise ValueError(f"top_k gives the divergence forward alone, not {self.divergence}")


MethodName = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce"]


def _policy_training() -> TrainingConfig:
    """Answers, not examples, are what a batch holds."""
    return TrainingConfig(
        steps=100,
        batch_size=64,
        learning_rate=1e-5,
        weight_decay=0.0,
        evaluate_every=20,
        checkpoint_every=50,
        sample_every=20,
    )


@dataclass
class RolloutConfig:
    """How answers are sampled."""

    samples: int = 8
    """Answers per prompt: a group."""
    max_tokens: int = 64
    """Most tokens of an answer."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in training alike."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the token that ends answers."""
    tool: Literal["none", "calculator"] = "none"
    """calculator: after <<48/2= in an answer follows 24>>, as in GSM8K; what the tool writes is not trained."""
    minibatches: int = 1
    """Optimizer steps that share the answers of one sampling: training.batch_size times so many are sampled."""
    epochs: int = 1
    """How often each answer is trained on."""
    batch_invariant: bool = False
    """Sample and train with the same bits whoever shares a batch: before an update, all probability ratios are 1
    exactly. About six times the time on a CPU in float32."""
    max_batch: int = 64
    """Most answers that are sampled at once."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "minibatches", "epochs", "max_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollouts.{name} must be at least 1, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"rollouts.temperature must be above 0, got {self.temperature}")


@dataclass
class PolicyConfig(FinetuningConfig):
    """What runs that train a policy on the rewards of its own answers have in common."""

    rewards: dict[str, float] = field(default_factory=lambda: {"exact": 1.0})
    """Rewards by name, each with its weight in the sum: exact, number, math (math-verify), gym (reasoning-gym),
    position_match, tests (code, in a process with limits), think_format, brevity, regex:PATTERN, model:FOLDER (a reward
    model), steps:FOLDER (a process reward model, by its worst line), or module:function, called with (prompt, tokens,
    text, answer). Rewards of form must weigh less than those of answers."""
    on_bad_reward: Literal["stop", "skip"] = "stop"
    """What to do if a reward raises an error or is not a finite number: end the run, or leave out the answer."""
    clip_low: float = 0.2
    """How far the probability ratio of a token may fall before it has no gradient."""
    clip_high: float = 0.2
    """How far it may rise."""
    clip_dual: float | None = None
    """Where the advantage is negative: the ratio at which the gradient ends, such as 3; nowhere if left out."""
    kl: float = 0.0
    """Weight of the KL divergence from the model that the run started with; 0 for none."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How it is estimated from sampled tokens. In the loss, the gradient is that of the KL with each of them."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether it is added to the loss, or taken from the reward (then by k1, the log-ratio)."""
    entropy: float = 0.0
    """Weight of the entropy of the policy, which is kept high; 0 for none."""
    importance_cap: float | None = None
    """Weight each token by the probability that training gives it over that of sampling, at most this much: corrects a
    sampler that computes other probabilities. Not if left out."""
    truncated: Literal["keep", "drop"] = "keep"
    """Answers cut at rollouts.max_tokens: trained like others, or left out of the loss."""
    reference: Literal["copy", "adapter"] = "copy"
    """Where the probabilities of the model that the run started with come from: a frozen copy, or the model without
    its adapter."""
    evaluation_samples: int = 1
    """Answers per held-out prompt in an evaluation: with several, pass@k and maj@k are reported."""
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    model: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=_policy_training)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rewards:
            raise ValueError("rewards is empty: name at least one, such as exact")
        for name in ("kl", "entropy"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.clip_low <= 1 or not self.clip_high > 0:
            raise ValueError(f"clip_low must be in (0, 1] and clip_high above 0, got {self.clip_low}, {self.clip_high}")
        if self.clip_dual is not None and self.clip_dual <= 1:
            raise ValueError(f"clip_dual must be above 1, got {self.clip_dual}")
        if self.importance_cap is not None and self.importance_cap < 1:
            raise ValueError(f"importance_cap must be at least 1, got {self.importance_cap}")
        if self.reference == "adapter" and self.adapter == "none":
            raise ValueError("reference adapter needs adapter lora or qlora, which is left out for the reference")
        if self.evaluation_samples < 1:
            raise ValueError(f"evaluation_samples must be at least 1, got {self.evaluation_samples}")
        training, rollouts = self.training, self.rollouts
        if training.context_warmup or training.batch_warmup:
            raise ValueError("training.context_warmup and batch_warmup are for pretraining: answers come in groups")
        if training.batch_size * rollouts.minibatches % rollouts.samples:
            raise ValueError(
                f"training.batch_size {training.batch_size} times rollouts.minibatches {rollouts.minibatches} must be "
                f"a multiple of rollouts.samples {rollouts.samples}"
            )
        if self.parallel.strategy != "ddp" or self.parallel.tensor > 1 or self.parallel.experts > 1:
            raise ValueError("rollouts need parallel.strategy ddp: each process samples with a whole model")


@dataclass
class GroupPolicyConfig(PolicyConfig):
    """One run that trains a policy by comparing answers to the same prompt: GRPO and its relatives."""

    method: MethodName = "grpo"
    """grpo: advantages over the standard deviation of the group, a mean over answers of means over tokens. dr_grpo:
    without the deviation, sums over a fixed length. dapo: a mean over tokens. gspo: the ratio of whole answers. cispo:
    clipped weights that keep every gradient. rloo: the others of the group as baseline, no clipping. reinforce: the
    mean reward as baseline, no clipping."""
    equal_groups: Literal["drop", "keep"] = "drop"
    """Groups whose answers all have the same reward, which have no advantages: left out of the loss with all that it
    has besides, or kept, so that they pay the KL."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollouts.samples < 2 and self.method != "reinforce":
            raise ValueError(f"method {self.method} compares answers of a group: set rollouts.samples to at least 2")


@dataclass
class ValuePolicyConfig(PolicyConfig):
    """One run that trains a policy with a value function: PPO."""

    gamma: float = 1.0
    """Discount of later rewards, per token."""
    gae: float = 0.95
    """λ of generalized advantage estimation: 1 for whole returns, 0 for one step."""
    value_weight: float = 0.5
    """Weight of the value function's loss."""
    value_clip: float | None = 0.2
    """How far values may move from those at sampling before they have no gradient."""
    whiten: bool = True
    """Scale the advantages of a sampling to mean 0 and variance 1."""
    bootstrap: bool = False
    """Answers cut at rollouts.max_tokens: add the value of the state after their last token to their reward, as if they
    would continue. For rewards that cannot judge a cut answer; where they can, a policy learns to be cut, which is then
    worth more than to end with a wrong answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma <= 1 or not 0 <= self.gae <= 1:
            raise ValueError(f"gamma must be in (0, 1] and gae in [0, 1], got {self.gamma} and {self.gae}")
        if self.value_weight < 0:
            raise ValueError(f"value_weight must be 0 or more, got {self.value_weight}")
