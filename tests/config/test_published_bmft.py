"""BMFT's and SWiFT's published command lines, as typed on their pages, become configurations that mean the same."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from evenhand.config import compose
from evenhand.config.compose import list_presets
from evenhand.config.patch_methods import BMFTConfig, PatchComparisonConfig, SWiFTConfig
from evenhand.config.published import PublishedOption, PublishedScript, published_tables, translate
from evenhand.config.published_bmft import (
    ARCHITECTURES,
    BMFT,
    BMFT_MAIN,
    EXPERIMENTS,
    KINDS,
    SWIFT_ARCHITECTURES,
    SWIFT_MAIN,
)
from evenhand.errors import ConfigError

PAGE = (
    "python src/train.py trainer=cpu",
    "python src/train.py trainer=gpu",
    "python src/train.py experiment=experiment_name.yaml",
    "python src/train.py trainer.max_epochs=20 data.batch_size=64",
)
"""The commands of both pages, letter for letter; the rest of them installs."""
PARSED = """arch attr bias seed batch-size num-workers lr-base lr-forget alpha beta momentum weight-decay unlearn-epochs n-epochs out-dim
pin-memory mask-type mask-iter mask-scale subset-ratio algo image-dir csv-dir test-csv-dir model-dir output-dir save-path log-dir
image-size CUDA_VISIBLE_DEVICES debias-config"""
"""What the argument parsers of both accept, read off their text; SWiFT's has --task, --num-attr and --run-times, BMFT's --dataset."""


def composed(line: str, **how: Any) -> Any:
    done = translate(line, **how)
    return compose(done.schema, done.overrides)


def refused(line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        translate(line)
    return str(caught.value)


@pytest.mark.parametrize("line", [line for line in PAGE if "experiment_name" not in line])
def test_every_line_of_the_pages_composes(line: str) -> None:
    config = composed(line)
    assert (config.model.name, config.model.pretrained, config.method.name) == ("resnet50.tv2_in1k", True, "finetune")
    trainer = config.trainer
    assert (trainer.optimizer, trainer.lr, trainer.momentum, trainer.schedule, trainer.clip_norm) == ("sgd", 0.03, 0.9, "plateau", 0.5)
    assert trainer.class_weights == "batch"
    assert trainer.max_epochs == 20
    assert trainer.accelerator == ("cpu" if "cpu" in line else "gpu")
    assert config.data.batch_size == (64 if "batch_size" in line else 128)


def test_the_placeholder_of_the_pages_is_named() -> None:
    assert "experiment=experiment_name.yaml is a placeholder of the published page" in refused(PAGE[2])


def test_every_experiment_of_both_repositories_is_one_of_ours() -> None:
    presets = list_presets("experiment")
    for name, (ours, epochs, images) in EXPERIMENTS.items():
        assert ours in presets
        words = translate(f"python src/train.py experiment={name}").overrides
        assert words == (f"experiment={ours}", "trainer=gpu", f"trainer.max_epochs={epochs}", f"data.batch_size={images}")
        assert translate(f"python src/train.py experiment={name}.yaml").overrides == words


def test_the_command_of_the_issue() -> None:
    line = "python src/train.py experiment=resnet50.yaml trainer=gpu trainer.max_epochs=20 data.batch_size=128"
    assert translate(line).command == "evenhand train experiment=isic_resnet50 trainer=gpu trainer.max_epochs=20 data.batch_size=128"


def test_loggers_and_debugging() -> None:
    assert composed("python src/train.py logger=tensorboard").logger == ["tensorboard"]
    assert composed("python src/train.py logger=comet").logger == []
    assert composed("python src/train.py debug=overfit").trainer.overfit_batches > 0
    assert "logger is 'wandb', but must be one of csv, tensorboard, mlflow" in refused("python src/train.py logger=wandb")


def test_bmft_in_paper_mode() -> None:
    line = "python main.py --algo ImpairRepair --arch resnet101 --attr sex --bias eopp --csv-dir data/skin/csv/isic_val.csv"
    done = translate(f"{line} --model-dir weights/resnet101.ckpt --lr-forget 3e-4 --unlearn-epochs 5")
    assert done.command.startswith("evenhand patch make method=bmft_paper ")
    config = compose(done.schema, done.overrides)
    method = config.method
    assert isinstance(method, BMFTConfig)
    assert (method.bias, method.bias_mode, method.bias_scores, method.bias_over) == ("eopp", "paper", "probability", "batch")
    assert (method.importance, method.ratio, method.rate, method.soft_mask) == ("batch", "minmax", 0.5, False)
    assert (method.impair_epochs, method.impair_lr, method.repair_epochs, method.repair_lr, method.beta) == (5, 3e-4, 10, 1e-3, 0.1)
    assert (method.repair_fit, method.reinit, method.stop, method.exact, method.l1) == ("sgd", "all", "last", True, 0.0)
    assert (config.data.path, config.data.attributes, config.data.val_fraction) == ("prepared/isic_val", ["sex"], 0.0)
    assert (config.model.checkpoint, config.model.name, config.model.input_size) == ("weights/resnet101.ckpt", "resnet101", [256, 256])
    assert config.audit.threshold == "0.5"


def test_bmft_as_released_has_its_defects_and_not_its_dead_options() -> None:
    line = "python main.py --algo ImpairRepair --momentum 0.5 --weight-decay 0.1 --alpha 0.3 --seed 7"
    config = composed(line, released=True)
    method = config.method
    assert (method.bias_mode, method.bias_scores, method.exact, method.hold_norms, method.schedule) == (
        "released", "logit", False, False, "constant",
    )
    assert method.ratio == composed("python TwoStageFinetune.py", released=True).method.ratio == "released"
    assert (method.momentum, method.weight_decay, method.l1, config.seed) == (0.9, 5e-4, 0.0, 42)
    paper = composed(line)
    assert (paper.method.momentum, paper.method.weight_decay, paper.method.l1, paper.seed) == (0.5, 0.1, 0.3, 7)
    assert [note for note in translate(line).notes if note.startswith("--momentum: the released code does not act on it")]


@pytest.mark.parametrize("script", ["main.py", "TwoStageFinetune.py"])
def test_the_subset_is_the_share_kept_there_and_the_share_left_out_here(script: str) -> None:
    """Released: rows whose cosine is above the quantile of --subset-ratio are dropped."""
    assert composed(f"python {script}").method.subset_ratio == 0.0
    for kept, left_out in ((0.1, 0.9), (0.9, 0.1), (1.0, 0.0), (0.0, 1.0)):
        assert composed(f"python {script} --subset-ratio {kept}").method.subset_ratio == left_out
    assert composed(f"python {script} --subset-ratio 0.3", released=True).method.subset_ratio == 0.0
    assert "here the share left out" in published_tables(BMFT)


def test_every_baseline_of_the_script() -> None:
    for algo, kind in KINDS.items():
        assert {"method=comparison_paper", f"method.kind={kind}"} <= set(translate(f"python main.py --algo {algo}").overrides)
    method = composed("python main.py --algo FullFT_RW").method
    assert isinstance(method, PatchComparisonConfig)
    assert (method.kind, method.stop, method.bias_over) == ("full_reweighted", "last", "batch")


def test_swift_descends_both_losses_in_step_one() -> None:
    config = composed("python algorithm/TwoStageFinetune.py --task skin --beta 0.3 --attr age")
    method = config.method
    assert isinstance(method, SWiFTConfig)
    assert (method.soft_mask, method.convex, method.reinit, method.impair_balanced) == (True, True, "masked", True)
    assert (method.beta, method.impair_beta, method.optimizer) == (0.3, 0.3, "sgd")
    assert config.model.input_size == [256, 256]
    films = composed("python TwoStageFinetune.py")
    assert (films.method.optimizer, films.model.input_size, films.model.name) == ("adam", [224, 224], "densenet121")


def test_every_network_is_one_of_timm() -> None:
    from timm import is_model

    for script, known in (("main.py", ARCHITECTURES), ("TwoStageFinetune.py", SWIFT_ARCHITECTURES)):
        for name, ours in known.items():
            assert is_model(ours)
            assert f"model.name={ours}" in translate(f"python {script} --arch {name}").overrides


def test_testing_a_starting_model() -> None:
    done = translate("python src/eval.py data=fit17k ckpt_path=runs/resnet50")
    assert done.command == "evenhand evaluate model=runs/resnet50 sets.fit17k=prepared/fitzpatrick17k"
    assert compose(done.schema, done.overrides).sets == {"fit17k": "prepared/fitzpatrick17k"}
    assert compose("evaluate", translate("python src/eval.py").overrides).sets == {"fit17k": "prepared/fitzpatrick17k"}


def test_training_that_goes_on() -> None:
    config = composed("python src/finetune.py experiment=resnet18_full_finetune_5_epochs.yaml ckpt_path=logs/model/balanced.ckpt")
    assert (config.model.checkpoint, config.model.pretrained, config.trainer.max_epochs) == ("logs/model/balanced.ckpt", False, 51)


def test_the_tables_hold_every_option_of_the_parsers_and_no_other() -> None:
    for script, own in ((BMFT_MAIN, {"dataset"}), (SWIFT_MAIN, {"task", "num-attr", "run-times"})):
        assert {option.name for option in script.options} == set(PARSED.split()) | own
        assert len({option.name for option in script.options}) == len(script.options)
    text = published_tables(BMFT)
    assert "`--lr-forget` (0.0001) | `method.impair_lr`" in text
    assert "`experiment=` (resnet50)" in text


def test_the_command_is_what_the_overrides_are() -> None:
    for line in ("python src/train.py trainer=gpu", "python main.py --algo FullFT_RWReg --attr sex", "python TwoStageFinetune.py"):
        done = translate(line)
        assert tuple(shlex.split(done.command)[-len(done.overrides) :]) == done.overrides


SAMPLES = {
    "arch": "resnet101", "bias": "spd", "mask-type": "random", "mask-scale": "layer", "task": "skin", "algo": "FullFT_RW", "attr": "age",
    "csv-dir": "x/other.csv", "experiment": "inception", "trainer": "cpu", "debug": "limit", "data": "atlas", "logger": "csv",
    "num-attr": "multi", "output-dir": "elsewhere",
}


def changed_by(script: PublishedScript, option: PublishedOption) -> None:
    value = SAMPLES.get(option.name, {int: "3", float: "0.375", str: "something"}.get(option.kind, ""))
    word = f"{option.name}={value}" if script.style == "hydra" else f"--{option.name} {value}".strip()
    before, after = f"python {script.file}", f"python {script.file} {word}"
    if option.fate == "refused":
        assert "has no counterpart" in refused(after)
        return
    old, new = (dict(part.split("=", 1) for part in translate(line).overrides) for line in (before, after))
    changed = {name for name in old | new if old.get(name) != new.get(name)}
    if (script.file, option.name) == ("eval.py", "data"):
        assert changed == {"sets.fit17k", "sets.atlas"}
        return
    extra = {"experiment", "trainer", "trainer.max_epochs", "data.batch_size"} if option.name in ("experiment", "debug") else set()
    assert changed <= set(option.ours) | extra | ({"method"} if option.name == "algo" else set()), option.name
    assert bool(changed) == (option.fate == "option"), option.name
    notes = [text for text in translate(after).notes if text.startswith(f"{script.typed(option.name)}: ")]
    assert len(notes) == (option.fate != "option" or bool(option.unread)), option.name
    if option.unread:
        assert translate(before, released=True).overrides == translate(after, released=True).overrides, option.name


@pytest.mark.parametrize("script", BMFT.scripts, ids=lambda script: script.file)
def test_every_option_does_what_the_table_says(script: PublishedScript) -> None:
    for option in script.options:
        changed_by(script, option)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("python main.py --arch resnet152", "--arch is 'resnet152', but must be one of densenet"),
        ("python main.py --algo impairrepair", "did you mean 'ImpairRepair'?"),
        ("python main.py --bias eod", "--bias is 'eod', but must be one of eodds"),
        ("python main.py --mask-scale tensor", "--mask-scale is 'tensor'"),
        ("python main.py --mask-type group", "--mask-type=group has no counterpart"),
        ("python main.py --lr-forgt 1", "did you mean 'lr-forget'?"),
        ("python TwoStageFinetune.py --task mri", "--task is 'mri', but must be one of skin, xray"),
        ("python src/train.py trainer.max_epoch=3", "did you mean 'trainer.max_epochs'?"),
        ("python src/train.py experiment=resnet152", "experiment is 'resnet152'"),
        ("python src/train.py resnet50", "'resnet50' is no option of train.py; write NAME=VALUE"),
        ("python src/train.py trainer.max_epochs=many", "must be a whole number"),
        ("python src/train.py hparams_search=mnist_optuna", "use `evenhand search`"),
    ],
    ids=range(12),
)
def test_what_cannot_be_translated_is_refused_in_one_line(line: str, says: str) -> None:
    text = refused(line)
    assert says in text
    assert "\n" not in text
