"""The outer search of FairTune: which parts of a network to fine-tune, and how fast, for fairness on validation rows.

    run_search(task_factory, config) -> SearchResult      the whole search: workers, budget, resume
    Scorer                                                objectives from validation predictions; who has collapsed
    SearchSpace                                           from a trial to a mask
    pick, pareto_front, ranked                            which trial wins
    load_study, records_of                                a finished or running study, for looking at it
"""

from evenhand.search.engine import SearchResult, run_search
from evenhand.search.objectives import MAXIMISED, Scored, Scorer
from evenhand.search.pick import pareto_front, pick, ranked
from evenhand.search.records import TrialRecord, records_of
from evenhand.search.space import SearchSpace, training_key
from evenhand.search.study import load_study, objectives_of
from evenhand.search.trial import TaskFactory, Workbench, run_trial

__all__ = [
    "MAXIMISED",
    "Scored",
    "Scorer",
    "SearchResult",
    "SearchSpace",
    "TaskFactory",
    "TrialRecord",
    "Workbench",
    "load_study",
    "objectives_of",
    "pareto_front",
    "pick",
    "ranked",
    "records_of",
    "run_search",
    "run_trial",
    "training_key",
]
