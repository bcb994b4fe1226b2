"""Published command lines, as typed, become configurations that mean the same; no option is lost without a word."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenhand.cli.app import main
from evenhand.config import compose, list_presets
from evenhand.config.editing import DNEConfig, GeZOConfig
from evenhand.config.methods import FinetuneConfig
from evenhand.config.published import PublishedOption, _composed, published_tables, systems, translate
from evenhand.config.published_dne import BLACK_BOX, DISEASE, DNE, HEAD, WHITE_BOX
from evenhand.errors import ConfigError

WEIGHTS = "./checkpoints/vit-b_CXR_0.5M_mae_pretrain.pth"
LAUNCH = r"""OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=0 python -m torch.distributed.launch \
    --nproc_per_node=1 \
    --master_port=12358 \
    --use_env """
STEP_1 = "python train_saCls."
STEP_2_WHITE = (
    LAUNCH
    + r"""train_dne.py \
    --output_dir "./output/your_log_folder_name/" \
    --log_dir "./output/your_log_folder_name/" \
    --batch_size 128 \
    --finetune "./checkpoints/vit-b_CXR_0.5M_mae_pretrain.pth" \
    --epochs 25 \
    --model vit_base_patch16 \
    --data_path "./data" \
    --num_workers 4 \
    --nb_classes 2 \
    --eval_interval 10 \
    --dataset "chexpert"  \
    --disease "Pleural" \
    --csv_path "./meta_data/" \
    --global_pool \
    --lambda_reg 0.001 """
)
STEP_2_BLACK = (
    STEP_2_WHITE.replace("train_dne.py", "train_dne_gezo.py")
    .replace("--epochs 25", "--epochs 50")
    .replace("--lambda_reg 0.001 ", "--init_step 0.03 \\\n    --sampled_steps 10 \\\n    --lambda_reg 0.001")
)
STEP_3 = (
    LAUNCH.replace("DEVICES=0", "DEVICES=3").replace("12358", "12348")
    + r"""finetune_fm.py \
    --output_dir "./output/your_log_folder_name/" \
    --log_dir "./output/your_log_folder_name/" \
    --batch_size 128 \
    --finetune "./checkpoints/vit-b_CXR_0.5M_mae_pretrain.pth" \
    --epochs 50 \
    --blr 2.5e-4 --layer_decay 0.55 --weight_decay 0.05 \
    --model vit_base_patch16 \
    --warmup_epochs 5 \
    --drop_path 0.2 --mixup 0 --cutmix 0 --reprob 0 --vit_dropout_rate 0 \
    --data_path "./data" \
    --num_workers 4 \
    --nb_classes 2 \
    --eval_interval 10 \
    --min_lr 1e-5 \
    --build_timm_transform \
    --aa 'rand-m6-mstd0.5-inc1' \
    --dataset "chexpert"  \
    --disease "Pleural" \
    --adddne \
    --dne_path "./path_to_your_dne.pt" \
    --csv_path "./meta_data/" """
)

PARSED = """batch_size epochs accum_iter model input_size drop_path clip_grad smoothing mixup cutmix cutmix_minmax mixup_prob
mixup_switch_prob mixup_mode finetune global_pool data_path nb_classes output_dir log_dir device seed start_epoch eval dist_eval
num_workers pin_mem no_pin_mem world_size local_rank dist_on_itp dist_url eval_interval vit_dropout_rate dataset loss_func csv_path
disease lambda_reg"""
EDITING = f"{PARSED} sa_path lambda_1 dne"
TUNING = f"""{PARSED} weight_decay lr blr layer_decay min_lr warmup_epochs color_jitter aa reprob remode recount resplit cls_token resume
train_list val_list test_list fixed_lr build_timm_transform aug_strategy repeated-aug optimizer ThreeAugment src norm_stats
checkpoint_type adddne dne_path colab"""
EXPECTED_OPTIONS = {
    "train_saCls.py": "",
    "train_dne.py": EDITING,
    "train_dne_gezo.py": f"{EDITING} init_step sampled_steps momentum",
    "finetune_fm.py": TUNING,
}
"""What the argument parsers of the published scripts accept, read off their text."""


def composed(line: str, **how: Any) -> Any:
    done = translate(line, **how)
    return copy.deepcopy(_composed(done.schema, done.overrides))


def refused(line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        translate(line)
    return str(caught.value)


def test_step_1_the_attribute_head() -> None:
    done = translate(STEP_1)
    config = compose("edit head", done.overrides)
    assert done.command.startswith("evenhand edit head method=dne_paper ")
    assert (config.method.head, config.method.head_lr, config.method.head_epochs, config.method.head_batch_size) == ("adam", 1e-4, 50, 64)
    assert (config.model.name, config.model.checkpoint, config.model.global_pool) == ("vit_base_patch16_224", WEIGHTS, "avg")
    assert (config.model.mean, config.model.std) == ([0, 0, 0], [1, 1, 1])
    assert (config.seed, config.out, config.data.attributes) == (1, "sa_cls", ["sex"])
    assert translate("python train_saCls.py") == done


def test_step_2_white_box() -> None:
    done = translate(STEP_2_WHITE)
    config = compose("edit train", done.overrides)
    assert done.command.startswith("OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=0 evenhand edit train method=dne_paper ")
    method = config.method
    assert isinstance(method, DNEConfig)
    assert (method.family, method.objective, method.per_channel, method.utility, method.odds) == (["pixel"], "published", False, 0, 0)
    assert (method.epochs, method.batch_size, method.lr, method.natural_steps) == (25, 128, 5e-5, False)
    assert (method.schedule, method.reset_optimizer, method.patience) == ("constant", True, 0)
    assert (method.attribute_weight, method.norm_weight) == (1, 0.001)
    assert (method.rounding, method.linf, method.l2, method.min_ssim) == ("none", None, None, None)
    assert config.attribute_head == "sa_cls"
    assert (config.data.labels, config.data.attributes) == (["Pleural Effusion"], ["sex"])
    assert (config.model.name, config.model.checkpoint, config.model.global_pool) == ("vit_base_patch16_224", WEIGHTS, "avg")
    assert (config.model.mean, config.model.std, config.seed) == ([0, 0, 0], [1, 1, 1], 0)
    assert config.out == "output/your_log_folder_name/edit"


def test_step_2_black_box() -> None:
    config = composed(STEP_2_BLACK)
    method = config.method
    assert isinstance(method, GeZOConfig)
    assert (method.family, method.objective, method.optimizer) == (["pixel"], "published", "gezo")
    assert (method.rounds, method.draws, method.step, method.momentum, method.step_decay) == (50, 10, 0.03, 0.9, 0.95)
    assert (method.query_images, method.natural_steps, method.norm_weight, method.utility) == (256, False, 0.001, 0)
    assert method.budget == 50 * (2 * 10 + 1) * 256
    assert all((method.same_batch, method.check_incumbent, method.both_signs, method.keep_momentum, method.keep_step))
    assert config.attribute_head == "sa_cls"


def test_step_3_the_disease_head() -> None:
    done = translate(STEP_3)
    config = compose("train", done.overrides)
    assert done.command.startswith("OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=3 evenhand train experiment=dne_finetune ")
    assert isinstance(config.method, FinetuneConfig)
    trainer = config.trainer
    assert config.method.freeze == "backbone"
    assert (trainer.optimizer, trainer.base_lr, trainer.lr) == ("adamw", 2.5e-4, None)
    assert (trainer.layer_decay, trainer.weight_decay) == (0.55, 0.05)
    assert (trainer.max_epochs, trainer.warmup_epochs, trainer.min_lr, trainer.schedule) == (50, 5, 1e-5, "cosine")
    assert (trainer.mixup, trainer.cutmix, trainer.random_erasing, trainer.label_smoothing) == (0, 0, 0, 0)
    assert (trainer.rand_augment, config.data.augment) == ("rand-m6-mstd0.5-inc1", "published_dne")
    assert (config.model.drop_path, config.model.drop_rate, config.model.global_pool) == (0.2, 0, "avg")
    assert (config.data.batch_size, trainer.accumulate, trainer.clip_norm, trainer.monitor) == (128, 1, 0, "last")
    assert config.edit == "./path_to_your_dne.pt"
    assert (config.data.labels, config.audit.threshold, config.model.checkpoint) == (["Pleural Effusion"], "0.5", WEIGHTS)
    assert config.out == "output/your_log_folder_name/disease"


def test_released_mode_has_the_released_defects() -> None:
    white, black = composed(STEP_2_WHITE, released=True).method, composed(STEP_2_BLACK, released=True).method
    assert (white.clamp, black.clamp, composed(STEP_2_WHITE).method.clamp) == (False, False, True)
    assert not any((black.same_batch, black.check_incumbent, black.both_signs, black.keep_momentum, black.keep_step))
    assert black.budget == 256_000
    disease = composed(STEP_3, released=True)
    assert (disease.trainer.schedule, disease.trainer.warmup_epochs) == ("constant", 0)
    assert (disease.trainer.rand_augment, disease.data.augment, disease.trainer.random_erasing) == ("", "none", 0)


@pytest.mark.parametrize("paper", ["dne_paper", "gezo_paper"])
def test_released_presets_differ_in_defects_only(paper: str) -> None:
    released = paper.replace("paper", "released")
    assert {paper, released} <= set(list_presets("method"))
    one, other = (vars(compose("edit train", ["data.path=d", f"method={name}"]).method) for name in (paper, released))
    differing = {name for name in one if one[name] != other[name]}
    defects = {"same_batch", "check_incumbent", "both_signs", "keep_momentum", "keep_step"} if paper == "gezo_paper" else set()
    assert differing == {"clamp", *defects, *(["budget"] if defects else [])}


def test_paper_presets_hold_the_values_of_the_translated_lines() -> None:
    for line, preset in ((STEP_2_WHITE, "dne_paper"), (STEP_2_BLACK, "gezo_paper")):
        assert composed(line).method == compose("edit train", ["data.path=d", f"method={preset}"]).method


def test_published_defaults_are_applied_where_the_line_is_silent() -> None:
    white = composed("python train_dne.py --dataset chexpert --disease Edema")
    assert (white.method.epochs, white.method.batch_size, white.method.norm_weight) == (50, 32, 0.01)
    assert (white.model.name, white.model.checkpoint, white.data.labels) == ("vit_large_patch16_224", None, ["Edema"])
    black = composed("python train_dne_gezo.py")
    assert (black.method.step, black.method.query_images, black.method.norm_weight) == (0.01, 64, 0.01)
    disease = composed("python finetune_fm.py")
    assert (disease.trainer.base_lr, disease.trainer.layer_decay, disease.trainer.min_lr) == (1e-3, 0.75, 1e-6)
    assert (disease.model.drop_path, disease.data.batch_size, disease.edit) == (0.1, 32, None)
    assert (disease.trainer.rand_augment, disease.trainer.random_erasing) == ("", 0)


def test_several_processes_become_torchrun_and_larger_batches() -> None:
    line = STEP_2_WHITE.replace("nproc_per_node=1", "nproc_per_node=4")
    done = translate(line)
    words = shlex.split(done.command)
    assert words[2:7] == ["torchrun", "--nproc_per_node=4", "--master_port=12358", "-m", "evenhand"]
    assert compose("edit train", done.overrides).method.batch_size == 4 * 128
    typed_otherwise = "torchrun --standalone --nnodes 2 --nproc-per-node 2 train_dne.py --batch_size=128"
    assert composed(typed_otherwise).method.batch_size == 512
    assert composed("torchrun --nproc_per_node=2 finetune_fm.py --batch_size 64 --accum_iter 3").data.batch_size == 128


@pytest.mark.parametrize("line", [STEP_2_WHITE, STEP_2_BLACK, STEP_3], ids=["white", "black", "disease"])
@pytest.mark.parametrize("released", [False, True])
def test_every_command_on_several_processes_may_start(line: str, released: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from evenhand.runs.edited import check_method

    done = translate(line.replace("nproc_per_node=1", "nproc_per_node=4"), released=released)
    words = shlex.split(done.command)
    assert "--nproc_per_node=4" in words[: words.index("evenhand")]
    config = compose(done.schema, done.overrides)
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_method(config.method, getattr(config, "edit", None), config.model.url)


def test_the_command_is_what_the_overrides_are() -> None:
    for line in (STEP_1, STEP_2_WHITE, STEP_2_BLACK, STEP_3):
        done = translate(line)
        words = shlex.split(done.command)
        assert tuple(words[-len(done.overrides) :]) == done.overrides


def test_the_tables_hold_every_option_of_the_scripts_and_no_other() -> None:
    assert {script.file: sorted(option.name for option in script.options) for script in DNE.scripts} == {
        file: sorted(names.split()) for file, names in EXPECTED_OPTIONS.items()
    }


SAMPLES = {"model": "vit_base_patch16", "finetune": "weights.pth", "disease": "Lesion", "device": "cpu", "aa": "rand-m3-mstd0.5-inc1",
           "sa_path": "elsewhere/head.pt", "dne_path": "other.pt", "output_dir": "elsewhere"}
CONTEXT = {"adddne": "", "dne_path": "x.pt", "build_timm_transform": "", "mixup": "0.5", "cutmix": "0.5"}
"""Options of finetune_fm.py that others need to have an effect."""
CASES = [(script, option) for script in DNE.scripts for option in script.options]


def typed(option: PublishedOption) -> str:
    """The option with a value that is not its default."""
    if option.kind is bool:
        return f"--{option.name}"
    value = SAMPLES.get(option.name, {int: "3", float: "0.375", str: "something"}[option.kind])
    return f"--{option.name} {value}"


def at(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("script", "option"), CASES, ids=[f"{script.file}-{option.name}" for script, option in CASES])
def test_every_option_does_what_the_table_says(script: Any, option: PublishedOption) -> None:
    context = {name: value for name, value in CONTEXT.items() if script is DISEASE and (name != option.name or name == "dne_path")}
    before = " ".join([f"python {script.file}", *(f"--{name} {value}" for name, value in context.items())])
    after = f"{before} {typed(option)}"
    if option.fate == "refused":
        assert f"--{option.name}=" in refused(after)
        return
    old, new = composed(before), composed(after)
    changed = {name for name in option.ours if at(old, name) != at(new, name)}
    if option.fate == "option":
        assert changed or option.name == "global_pool", f"none of {option.ours} has changed"
        for name in changed:
            set_back(new, old, name)
    assert new == old
    note = [text for text in translate(after).notes if text.startswith(f"--{option.name}: ")]
    assert len(note) == (option.fate != "option" or bool(option.unread))
    if option.unread:
        assert composed(before, released=True) == composed(after, released=True)


def set_back(config: Any, source: Any, name: str) -> None:
    section, _, leaf = name.rpartition(".")
    setattr(at(config, section) if section else config, leaf, at(source, name))


@settings(max_examples=15, deadline=None)
@given(
    rounds=st.integers(1, 500), draws=st.integers(1, 50), batch=st.integers(1, 512), step=st.floats(1e-4, 1, allow_nan=False),
    processes=st.integers(1, 8), released=st.booleans(),
)
def test_a_black_box_budget_is_what_the_rounds_cost(
    rounds: int, draws: int, batch: int, step: float, processes: int, released: bool
) -> None:
    line = f"torchrun --nproc_per_node={processes} train_dne_gezo.py --epochs {rounds} --sampled_steps {draws} --batch_size {batch} "
    method = composed(f"{line} --init_step {step!r}", released=released).method
    assert method.budget == sum(2 * draws * method.query_images + (0 if released else method.query_images) for _ in range(rounds))
    assert method.query_images == 2 * batch * processes
    assert method.step == pytest.approx(step, rel=1e-5)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("python train_dne.py --epoch 3", "did you mean 'epochs'?"),
        ("python train_dne.py --epochs x", "--epochs is 'x', but must be a whole number"),
        ("python train_dne.py --lambda_reg x", "must be a number"),
        ("python train_dne.py --epochs", "--epochs needs a value"),
        ("python train_dne.py --epochs --seed 1", "--epochs needs a value"),
        ("python train_dne.py epochs=3", "options start with two dashes"),
        ("python train_dne.py --disease Fracture", "--disease is 'Fracture'"),
        ("python train_dne.py --model resnet50", "--model is 'resnet50'"),
        ("python train_dne.py --device tpu", "--device is 'tpu'"),
        ("python train_dna.py", "did you mean 'train_dne.py'?"),
        ("python train_saCls.py --epochs 3", "it takes none"),
        ("python -m accelerate.launch train_dne.py", "is no launcher that is known"),
        ("torchrun --nproc_per_node=gpu train_dne.py", "must be a number here"),
        ("torchrun --nproc_per_nod=2 train_dne.py", "did you mean 'nproc_per_node'?"),
        ("python", "names no script"),
        ("", "names no script"),
        ("python train_dne.py --disease 'Edema", "cannot be read"),
        ("python finetune_fm.py --adddne", "--adddne needs --dne_path FILE"),
        ("python finetune_fm.py --eval", "use `evenhand evaluate`"),
        ("python finetune_fm.py --mixup_mode pair", "has no counterpart"),
    ],
    ids=range(20),
)
def test_what_cannot_be_translated_is_refused_in_one_line(line: str, says: str) -> None:
    text = refused(line)
    assert says in text
    assert "\n" not in text


def test_a_prepared_folder_takes_the_place_of_the_usual_name() -> None:
    done = translate(STEP_2_WHITE, data="prepared/mine")
    assert compose("edit train", done.overrides).data.path == "prepared/mine"
    assert not any(note.startswith("data.path") for note in done.notes)


def test_the_command_line_prints_the_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["translate", STEP_3, "--released"]) == 0
    shown = capsys.readouterr()
    assert shown.out == translate(STEP_3, released=True).command + "\n"
    assert "--num_workers: not needed" in shown.err
    assert main(["translate", "python nothing.py"]) == 2


def test_the_page_shows_the_tables_as_they_are(repository: Path) -> None:
    page = (repository / "docs" / "methods" / "dne.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- published commands: begin -->\n\n(.*?)\n<!-- published commands: end -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == published_tables(DNE), "run: make reference"


def test_every_system_has_scripts_of_its_own_names() -> None:
    files = [script.file for system in systems() for script in system.scripts]
    assert len(files) == len(set(files))
    assert {HEAD, WHITE_BOX, BLACK_BOX, DISEASE} == set(DNE.scripts)
