"""The configuration of `evenhand search`, free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from evenhand.config.schema import AuditConfig, DataConfig, ModelConfig, TrainerConfig, opt

OBJECTIVES: dict[str, str] = {
    "worst_auc": "AUC of the worst group",
    "worst_accuracy": "accuracy of the worst group",
    "auc_gap": "largest minus smallest AUC of a group",
    "accuracy_gap": "largest minus smallest accuracy of a group",
    "worst_loss": "cross-entropy of the worst group (the headline of the paper)",
    "equalized_odds": "the larger of the TPR gap and the FPR gap",
    "demographic_parity": "gap of the share predicted positive",
    "utopia": "distance of the groups' AUCs from 1, root mean square over groups",
    "auc": "AUC of all rows",
    "accuracy": "accuracy of all rows",
}
"""What a search can aim at: name -> one line. The values and their directions are in `evenhand.search.objectives`."""

SAMPLERS = ("tpe", "random", "nsga2", "gp")
PRUNERS = ("none", "median", "halving", "hyperband")


@dataclass
class SearchConfig:
    """`evenhand search`: which parts of a network to fine-tune, and how fast, for fairness on validation rows; writes mask.json."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    space: str = opt("norms|attention|mlp", "what the bits of a mask switch: blocks, attention, norms, mlp, norms|attention|mlp, stages, "
                     "conv|norm, …; the spaces of a network are listed where it lacks the one asked for")
    objective: str = opt("worst_auc", "what the search aims at, on validation rows", choices=tuple(OBJECTIVES))
    second_objective: Optional[str] = opt(None, "a second aim; the result is a Pareto front, of which `pick` takes one",
                                          choices=tuple(OBJECTIVES))
    pick: str = opt("utopia", "which point of a Pareto front becomes mask.json: utopia (nearest to the best of both, scaled over the "
                    "front) or within (best second objective among those within `pick_within` of the best first)",
                    choices=("utopia", "within"))
    pick_within: float = opt(0.02, "pick=within: how much of the first objective may be given up", low=0)
    over_labels: str = opt("mean", "several labels or classes: mean of their objectives, or the worst of them", choices=("mean", "worst"))
    threshold: str = opt("youden", "decisions behind accuracy, equalized odds and demographic parity, as in audit.threshold; chosen on "
                         "the validation rows (published: 0.5). Multi-class: the most probable class")
    min_patients: int = opt(10, "validation patients (AUC: of each class) that a group needs to count in an objective", "patients")
    collapse_tolerance: float = opt(0.02, "a trial whose AUC is below 0.5 + this has collapsed, as has one that predicts one class: it "
                                    "is infeasible and cannot win", "share")
    n_trials: int = opt(100, "trials in all, over every worker and every call of this command", low=1)
    sampler: str = opt("tpe", "what proposes masks", choices=SAMPLERS)
    startup_trials: int = opt(10, "random trials before tpe and gp learn from them; nsga2: size of a population", low=1)
    pruner: str = opt("none", "what stops trials that fall behind, asked after every epoch; with one objective only", choices=PRUNERS)
    prune_after: int = opt(1, "epochs before a trial may be stopped", "epochs", low=1)
    prune_startup: int = opt(5, "pruner=median: finished trials before any is stopped", low=0)
    reduction: int = opt(3, "pruner=halving, hyperband: one in this many trials goes on at each rung", low=2)
    lr_low: float = opt(1e-5, "least learning rate of the search (log-uniform)", low=0)
    lr_high: float = opt(1e-3, "greatest learning rate of the search; equal to lr_low: it is not searched", low=0)
    lora_ranks: list[int] = opt([], "choices for each part instead of frozen or trained: 0 frozen, -1 trained whole, else the rank of a "
                                "LoRA update (needs the extra lora), for example 0,4,8,16", low=-1)
    lr_scales: list[float] = opt([], "factors of the learning rate to choose from for each trained part, for example 0.1,1,10", low=0)
    outer: str = opt("holdout", "what a trial is judged on: holdout (the validation rows), cv (every row outside test once, over `folds` "
                     "trainings) or seeds (mean over `folds` trainings, each with train and validation re-drawn)",
                     choices=("holdout", "cv", "seeds"))
    folds: int = opt(5, "outer=cv, seeds: trainings a trial", low=2)
    prefix: bool = opt(True, "compute what lies before the first trained part once for all trials, where the images allow it")
    views: int = opt(0, "augmented views of every training image that are kept for `prefix`; 0 = fresh augmentation every epoch, which "
                     "`prefix` cannot use", low=0)
    warm_head: bool = opt(False, "start every trial from a head fitted on embeddings of the network as it comes")
    reuse: bool = opt(True, "look the result up of a trial whose mask and learning rate were trained before")
    stop_collapsed: int = opt(0, "stop a trial that has been collapsed for this many epochs in a row; 0 = off", "epochs")
    workers: int = opt(1, "processes on this machine; with GPUs, one for each in turn", low=1)
    threads: int = opt(0, "processor threads of a worker; 0 = the machine's, shared out", low=0)
    storage: Optional[str] = opt(None, "where the study lives: a journal file, sqlite:///FILE or postgresql://USER@HOST/NAME (password in "
                                 "PGPASSWORD); temporary: nowhere, the study is gone when the search ends; default: study.journal in out")
    study: str = opt("search", "name of the study in its storage")
    heartbeat: float = opt(10.0, "seconds between signs of life of a worker", "seconds", low=0.05)
    grace: float = opt(60.0, "seconds without one until a worker of another machine is taken for dead and its trial is run again",
                       "seconds", low=0.1)
    reruns: int = opt(2, "times a trial is run again whose worker died, before it counts as failed", low=0)
    storage_wait: float = opt(300.0, "seconds to wait for a storage that has gone away", "seconds", low=0)
    finalists: int = opt(3, "best trials that are trained again at the end and tested, the chosen one first; 0 = none", low=0)
    baselines: list[str] = opt(["full", "head"], "what the finalists are compared with, the first one in pairs: full, head, attention, "
                               "norms, bitfit, random, lora, scratch (everything, from random weights), or a method's name")
    baseline_rates: list[float] = opt([], "learning rates of the fixed masks and of scratch among them; of each the best rate by the first "
                                      "objective on validation rows is shown. Empty: trainer.lr, and the rate that the search chose", low=0)
    audit: AuditConfig = field(default_factory=AuditConfig)
    seed: int = opt(0, "seed of every random stream")
    out: Optional[str] = opt(None, "folder of the search; default: runs/<time>-search")
    activations: Optional[str] = opt(None, "prefix: folder of kept activations, shared by workers; default: activations/ in out")
    embeddings: Optional[str] = opt(None, "folder of cached embeddings; default: embeddings/ in the prepared data set")
    deterministic: bool = opt(True, "refuse operations without a deterministic implementation where there is a choice")
