"""FairTune's published command lines, as typed on its page, become configurations that mean the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from evenhand.cli.app import main
from evenhand.config import compose
from evenhand.config.methods import FinetuneConfig
from evenhand.config.published import PublishedOption, published_tables, translate
from evenhand.config.published_fairtune import ATTRIBUTES, FAIRTUNE, FIXED, NETWORKS, OBJECTIVES, SEARCH, SPACES
from evenhand.config.search import OBJECTIVES as OUR_OBJECTIVES
from evenhand.config.search import SearchConfig
from evenhand.errors import ConfigError
from evenhand.models.parts import SPACES as OUR_SPACES

PAGE_SEARCH = r"""python search_mask.py --model [model] --epochs [epochs] --batch-size [batch-size] \
--opt [opt] --lr [lr] --lr-scheduler [lr-scheduler] --lr-warmup-method [lr-warmup-method] --lr-warmup-epochs [lr-warmup-epochs]
--tuning_method [tuning_method] --dataset [dataset] --sens_attribute [sens_attribute] \
--objective_metric [objective_metric] --num_trials [num_trials] --disable_storage --disable_checkpointing"""
PAGE_FINETUNE = r"""python finetune_with_mask.py --model [model] --epochs [epochs] --batch-size [batch-size] \
--opt [opt] --lr [lr] --lr-scheduler [lr-scheduler] --lr-warmup-method [lr-warmup-method] --lr-warmup-epochs [lr-warmup-epochs]
--tuning_method [tuning_method] --dataset [dataset] --sens_attribute [sens_attribute] \
--cal_equiodds --mask_path [mask_path] --cal_equiodds --use_metric auc"""
"""The two lines of the published page, letter for letter."""

TYPED = {"model": "vit_base", "epochs": "10", "batch-size": "64", "opt": "adamw", "lr": "3e-4", "lr-scheduler": "cosineannealinglr",
         "lr-warmup-method": "linear", "lr-warmup-epochs": "2", "tuning_method": "auto_peft1", "dataset": "HAM10000",
         "sens_attribute": "age", "objective_metric": "min_auc", "num_trials": "20", "mask_path": "masks/best.npy"}

PARSED = """dataset train_subset_ratio val_subset_ratio dataset_basepath model device batch-size epochs workers opt lr lr_scaler outer_lr
momentum wd norm-weight-decay bias-weight-decay transformer-embedding-decay label-smoothing mixup-alpha cutmix-alpha lr-scheduler
lr-scheduler-outer lr-warmup-epochs lr-warmup-method lr-warmup-decay lr-step-size lr-gamma lr-min print-freq output-dir resume
start-epoch cache-dataset sync-bn test-only auto-augment ra-magnitude augmix-severity random-erase amp world-size dist-url model-ema
model-ema-steps model-ema-decay use-deterministic-algorithms interpolation val-resize-size val-crop-size train-crop-size
clip-grad-norm ra-sampler ra-reps weights tuning_method masking_vector_idx masking_vector subnetwork_mask_name mask_path
exp_vector_path mask_gen_method sigma use_adaptive_threshold thr_ema_decay use_gumbel_sigmoid wandb_logging ckpt_dir
disable_checkpointing disable_training disable_plotting dev_mode sens_attribute age_type skin_type use_metric objective_metric
num_trials pruner disable_storage use_multi_objective pruning_ratio b_param cal_equiodds fscl train_encoder_lr train_classifier_lr
fscl_eval_only temperature contrast_mode base_temperature group_norm method label_type compute_cw"""
"""What the one argument parser of both scripts accepts, read off its text; --compute_cw is the page's."""


def filled(page: str, **other: str) -> str:
    """A line of the page with values in place of its placeholders."""
    return re.sub(r"\[([\w-]+)\]", lambda match: (TYPED | other)[match[1]], page)


def searched(line: str, **how: Any) -> SearchConfig:
    done = translate(line, **how)
    assert done.schema == "search"
    config = compose("search", done.overrides)
    assert isinstance(config, SearchConfig)
    return config


def tuned(line: str, **how: Any) -> Any:
    done = translate(line, **how)
    assert done.schema == "train"
    config = compose("train", done.overrides)
    assert isinstance(config.method, FinetuneConfig)
    return config


def refused(line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        translate(line)
    return str(caught.value)


def test_stage_1_of_the_page() -> None:
    done = translate(filled(PAGE_SEARCH))
    assert done.command.startswith("evenhand search ")
    config = searched(filled(PAGE_SEARCH))
    assert (config.space, config.objective, config.n_trials) == ("norms|attention|mlp", "worst_auc", 20)
    assert (config.pruner, config.reduction, config.sampler, config.threshold) == ("halving", 4, "tpe", "0.5")
    assert (config.lr_low, config.lr_high) == (1e-5, 1e-3)
    assert (config.data.path, config.data.attributes) == ("prepared/ham10000", ["age"])
    assert (config.data.batch_size, config.data.augment) == (64, "published_fairtune")
    assert (config.model.name, config.model.pretrained) == ("vit_base_patch16_224", True)
    assert (config.model.mean, config.model.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    trainer = config.trainer
    assert (trainer.max_epochs, trainer.optimizer, trainer.weight_decay, trainer.monitor) == (10, "adamw", 1e-4, "last")
    assert (trainer.schedule, trainer.min_lr) == ("cosine", 0)
    assert (trainer.warmup, trainer.warmup_epochs, trainer.warmup_share) == ("linear", 2, 0.01)
    assert config.storage == "temporary"
    assert [note for note in done.notes if note.startswith("--lr: no effect")]
    assert [note for note in done.notes if note.startswith("--disable_checkpointing: not needed")]


def test_stage_2_of_the_page() -> None:
    config = tuned(filled(PAGE_FINETUNE))
    assert (config.method.mask, config.method.mask_space, config.method.mask_lr) == ("masks/best.npy", "norms|attention|mlp", 3e-4)
    assert config.trainer.lr is None
    assert (config.audit.threshold, config.audit.primary) == ("0.5", ["auc", "equalized_odds"])
    assert (config.data.path, config.data.attributes, config.trainer.monitor) == ("prepared/ham10000", ["age"], "last")
    assert config.out == "vit_base/HAM10000/finetune/age/auto_peft1"


@pytest.mark.parametrize("page", [PAGE_SEARCH, PAGE_FINETUNE])
def test_a_placeholder_that_was_left_in_is_named(page: str) -> None:
    assert "--model is '[model]', a placeholder of the published page" in refused(page)


@pytest.mark.parametrize("published", SPACES)
def test_every_searched_tuning_method_is_a_space(published: str) -> None:
    assert searched(filled(PAGE_SEARCH, tuning_method=published)).space == SPACES[published]
    assert SPACES[published] in OUR_SPACES
    config = tuned(filled(PAGE_FINETUNE, tuning_method=published))
    assert config.method.mask_space == SPACES[published]


def test_the_space_of_a_mask_json_is_its_own() -> None:
    assert tuned(filled(PAGE_FINETUNE, mask_path="search/mask.json")).method.mask_space is None


@pytest.mark.parametrize("published", FIXED)
def test_every_fixed_tuning_method_trains_and_cannot_be_searched(published: str) -> None:
    config = tuned(filled(PAGE_FINETUNE, tuning_method=published))
    expected = {"fullft": "", "train_from_scratch": "", "linear_readout": "", "tune_attention": "attention", "tune_layernorm": "norms",
                "bitfit": "bitfit"}[published]
    assert (config.method.mask or "") == expected
    assert config.method.from_scratch == (published == "train_from_scratch")
    assert (config.method.freeze == "backbone") == (published == "linear_readout")
    assert (config.method.mask_lr, config.trainer.lr) == (None, 3e-4)
    assert "finetune_with_mask.py takes it" in refused(filled(PAGE_SEARCH, tuning_method=published))


@pytest.mark.parametrize("published", OBJECTIVES)
def test_every_objective(published: str) -> None:
    assert OBJECTIVES[published] in OUR_OBJECTIVES
    assert searched(filled(PAGE_SEARCH, objective_metric=published)).objective == OBJECTIVES[published]


@pytest.mark.parametrize("published", ATTRIBUTES)
def test_every_attribute(published: str) -> None:
    assert searched(filled(PAGE_SEARCH, sens_attribute=published)).data.attributes == [ATTRIBUTES[published]]


@pytest.mark.parametrize("published", NETWORKS)
def test_every_network_is_one_of_timm(published: str) -> None:
    from timm import is_model

    config = searched(filled(PAGE_SEARCH, model=published))
    assert is_model(config.model.name)
    assert config.model.pretrained == (config.model.checkpoint is None)


def test_metric_switches_choose_what_is_tested() -> None:
    base = filled(PAGE_FINETUNE)
    assert tuned(base.replace("--cal_equiodds", "")).audit.primary == ["auc"]
    assert tuned(base.replace("--use_metric auc", "--use_metric acc")).audit.primary == ["accuracy", "equalized_odds"]


def test_class_weights() -> None:
    assert searched(filled(PAGE_SEARCH) + " --compute_cw").trainer.class_weights == "balanced"
    assert tuned(filled(PAGE_FINETUNE) + " --compute_cw").trainer.class_weights == "balanced"


def test_released_mode_has_the_released_defects() -> None:
    config = searched(filled(PAGE_SEARCH) + " --compute_cw", released=True)
    assert (config.pruner, config.trainer.class_weights) == ("none", "none")
    silent = filled(PAGE_FINETUNE).replace("--lr 3e-4 ", "")
    assert tuned(silent, released=True).method.mask_lr == 0.1
    assert tuned(silent).method.mask_lr is None
    assert any("falls back to 0.1" in note for note in translate(silent).notes)


def test_published_defaults_are_applied_where_the_line_is_silent() -> None:
    config = searched("python search_mask.py --dataset papila --sens_attribute gender --model vit_base --tuning_method auto_peft2")
    trainer = config.trainer
    assert (trainer.max_epochs, trainer.optimizer, trainer.momentum, trainer.schedule) == (90, "sgd", 0.9, "step")
    assert (trainer.step_size, trainer.gamma, trainer.warmup_epochs, trainer.warmup_share) == (30, 0.1, 0, None)
    assert (config.objective, config.n_trials, config.data.batch_size, config.storage) == ("worst_accuracy", 5, 32, None)


def test_short_and_second_spellings() -> None:
    line = "python search_mask.py --dataset papila --sens_attribute gender --model vit_base --tuning_method auto_peft1"
    config = searched(f"{line} -b 16 -j 4 --weight-decay 0.01")
    assert (config.data.batch_size, config.trainer.weight_decay) == (16, 0.01)
    assert searched(f"{line} --wd=0.02").trainer.weight_decay == 0.02


def test_several_processes_are_larger_batches() -> None:
    line = filled(PAGE_FINETUNE).replace("python ", "torchrun --nproc_per_node=2 ")
    assert tuned(line).data.batch_size == 128


def test_the_command_is_what_the_overrides_are() -> None:
    for page in (PAGE_SEARCH, PAGE_FINETUNE):
        done = translate(filled(page))
        assert tuple(shlex.split(done.command)[-len(done.overrides) :]) == done.overrides


def test_the_tables_hold_every_option_of_the_parser_and_no_other() -> None:
    for script in FAIRTUNE.scripts:
        assert sorted(option.name for option in script.options) == sorted(PARSED.split())


SAMPLES = {"model": "vit_large", "device": "cpu", "opt": "sgd", "dataset": "papila", "sens_attribute": "race", "lr-scheduler": "steplr",
           "lr-warmup-method": "constant", "tuning_method": "auto_peft2", "objective_metric": "overall_auc", "pruner": "Hyperband",
           "use_metric": "acc", "mask_path": "other.npy", "lr-step-size": "7"}
CASES = [(script, option) for script in FAIRTUNE.scripts for option in script.options]


def typed(option: PublishedOption) -> str:
    """The option with a value that neither the lines nor the defaults have."""
    value = SAMPLES.get(option.name, {int: "3", float: "0.375", str: "something"}.get(option.kind, ""))
    return f"--{option.name} {'' if option.kind is bool else value}"


@pytest.mark.parametrize(("script", "option"), CASES, ids=[f"{script.file}-{option.name}" for script, option in CASES])
def test_every_option_does_what_the_table_says(script: Any, option: PublishedOption) -> None:
    before = filled(PAGE_SEARCH if script is SEARCH else PAGE_FINETUNE).replace("--disable_storage --disable_checkpointing", "")
    before = before.replace("--cal_equiodds", "")
    after = f"{before} {typed(option)}"
    if option.fate == "refused":
        assert f"--{option.name}=" in refused(after)
        return
    old, new = (dict(word.split("=", 1) for word in translate(line).overrides) for line in (before, after))
    changed = {name for name in old | new if old.get(name) != new.get(name)} - {"out"}  # the folder is named by what was asked for
    assert changed <= set(option.ours)
    assert bool(changed) == (option.fate == "option")
    if changed:
        compose(script.schema, translate(after).overrides)
    notes = [text for text in translate(after).notes if text.startswith(f"--{option.name}: ")]
    assert len(notes) == (option.fate != "option" or bool(option.unread))
    if option.unread:
        assert translate(before, released=True).overrides == translate(after, released=True).overrides


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("python search_mask.py", "--dataset is missing"),
        ("python search_mask.py --dataset ham", "--sens_attribute is missing, and has no default"),
        ("python search_mask.py --dataset ham --sens_attribute age", "--model is resnet18, the default, which the scripts cannot build"),
        ("python search_mask.py --dataset ham --sens_attribute age --model vit_bas", "did you mean 'vit_base'?"),
        ("python search_mask.py --objective_metrc min_auc", "did you mean 'objective_metric'?"),
        ("python search_mask.py -x 3", "options start with two dashes"),
        ("python search_mask.py -b", "--batch-size needs a value"),
        ("python search_mask.py -b -j 2", "--batch-size needs a value"),
        ("python finetune_with_masks.py", "did you mean 'finetune_with_mask.py'?"),
        (filled(PAGE_SEARCH, opt="rmsprop"), "--opt is 'rmsprop', but here it must be sgd, adamw"),
        (filled(PAGE_SEARCH, sens_attribute="sex"), "--sens_attribute is 'sex', but the scripts know gender"),
        (filled(PAGE_SEARCH, objective_metric="eodds"), "--objective_metric is 'eodds'"),
        (filled(PAGE_FINETUNE).replace("--mask_path masks/best.npy", ""), "--tuning_method auto_peft1 needs --mask_path FILE"),
        (filled(PAGE_FINETUNE) + " --norm-weight-decay 0.1", "has no counterpart: here biases"),
        (filled(PAGE_FINETUNE) + " --disable_training", "use `evenhand evaluate`"),
    ],
    ids=range(15),
)
def test_what_cannot_be_translated_is_refused_in_one_line(line: str, says: str) -> None:
    text = refused(line)
    assert says in text
    assert "\n" not in text


def test_the_command_line_prints_the_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["translate", filled(PAGE_SEARCH), "--data", "prepared/mine"]) == 0
    shown = capsys.readouterr()
    assert shown.out == translate(filled(PAGE_SEARCH), data="prepared/mine").command + "\n"
    assert "data.path=prepared/mine" in shown.out
    assert "data.path: prepare" not in shown.err


def test_the_page_shows_the_tables_as_they_are(repository: Path) -> None:
    page = (repository / "docs" / "methods" / "fairtune.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- published commands: begin -->\n\n(.*?)\n<!-- published commands: end -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == published_tables(FAIRTUNE), "run: make reference"
