"""Overrides as typed -> the typed configuration, and one readable line for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import evenhand
from evenhand.config import compose, compose_yaml, list_options, list_presets
from evenhand.config.compose import PRESETS, SCHEMAS
from evenhand.config.methods import METHOD_CONFIGS, DFRConfig, FinetuneConfig, LinearProbeConfig
from evenhand.config.schema import DataConfig, TrainConfig
from evenhand.errors import ConfigError


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(overrides: list[str], schema: str = "train", **kwargs: object) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(schema, overrides, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert not any(word in text.lower() for word in ("hydra", "omegaconf", "full_key", "object_type", "structured"))
    return text


def test_defaults_are_those_of_the_dataclasses() -> None:
    config = compose("train", ["data.path=prepared"])
    expected = TrainConfig(data=DataConfig(path="prepared"), method=LinearProbeConfig())
    assert config == expected
    assert evenhand.compose is compose


def test_the_published_command_line() -> None:
    config = compose("train", ["data.path=d", "trainer=gpu", "experiment=dne_finetune", "trainer.max_epochs=20", "data.batch_size=128"])
    assert isinstance(config.method, FinetuneConfig)
    assert (config.trainer.accelerator, config.trainer.max_epochs, config.data.batch_size) == ("gpu", 20, 128)


def test_the_published_dne_recipe() -> None:
    config = compose("train", ["data.path=d", "experiment=dne_finetune"])
    trainer = config.trainer
    assert (config.model.drop_path, config.model.drop_path_optional) == (0.2, True)
    typed = compose("train", ["data.path=d", "experiment=dne_finetune", "model.drop_path=0.2"])
    assert not typed.model.drop_path_optional, "what a user types is not left out silently"
    assert (trainer.optimizer, trainer.base_lr, trainer.layer_decay, trainer.weight_decay) == ("adamw", 2.5e-4, 0.55, 0.05)
    assert (trainer.max_epochs, trainer.warmup_epochs, trainer.min_lr, trainer.schedule) == (50, 5, 1e-5, "cosine")
    assert trainer.rand_augment == "rand-m6-mstd0.5-inc1"


def test_experiment_with_and_without_its_ending() -> None:
    assert compose("train", ["data.path=d", "experiment=dne_finetune.yaml"]) == compose("train", ["data.path=d", "experiment=dne_finetune"])


def test_what_is_typed_wins_over_presets_whatever_the_order() -> None:
    for order in (1, -1):
        config = compose("train", ["data.path=d", "trainer.max_epochs=3", "experiment=dne_finetune", "method=dfr"][::order])
        assert config.trainer.max_epochs == 3
        assert isinstance(config.method, DFRConfig)


@pytest.mark.parametrize("name", sorted(METHOD_CONFIGS))
def test_every_method_has_a_preset_of_its_name(name: str) -> None:
    config = compose("train", ["data.path=d", f"method={name}"])
    assert config.method == METHOD_CONFIGS[name]()


@pytest.mark.parametrize("group", ["data", "model", "trainer", "experiment"])
def test_every_shipped_preset_composes(group: str) -> None:
    for name in list_presets(group):
        command = "search" if name.startswith("fairtune") else "train"
        assert compose(command, ["data.path=d", f"{group}={name}"]).data.path == "d"


def test_erm_is_fine_tuning() -> None:
    assert compose("train", ["data.path=d", "method=erm"]).method == FinetuneConfig()


def test_lists_spaces_signs_and_other_alphabets() -> None:
    config = compose("train", [
        "data.path=/data/Röntgen bilder/a=b,c", "data.attributes=sex,age,sex*age", "data.labels=[a,b]", "seeds=0,1,2", "out=läufe/α",
    ])
    assert config.data.path == "/data/Röntgen bilder/a=b,c"
    assert config.data.attributes == ["sex", "age", "sex*age"]
    assert (config.data.labels, config.seeds, config.out) == (["a", "b"], [0, 1, 2], "läufe/α")


def test_a_path_goes_to_its_option(inside: Path) -> None:
    (inside / "my data").mkdir()
    (inside / "weights.pth").touch()
    config = compose("train", ["data=my data", "model=weights.pth"])
    assert (config.data.path, config.model.checkpoint) == ("my data", "weights.pth")


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ([], "auto"),
        (["model.name=resnet18"], "resnet18"),
        (["model=mae_vit_b16"], "vit_base_patch16_224"),
        (["experiment=dne_finetune"], "auto"),
    ],
)
@pytest.mark.parametrize("weights", ["weights.pth", "hf-hub:org/name"])
def test_weights_named_by_model_tell_the_architecture_unless_it_is_given(inside: Path, weights: str, extra: list[str], name: str) -> None:
    (inside / "weights.pth").touch()
    for order in (1, -1):
        config = compose("train", ["data.path=d", *[f"model={weights}", *extra][::order]])
        assert (config.model.checkpoint, config.model.name) == (weights, name)


def test_a_model_name_is_left_to_timm(inside: Path) -> None:
    config = compose("train", ["data.path=d", "model=vit_tiny_patch16_224.augreg_in21k"])
    assert (config.model.name, config.model.checkpoint) == ("vit_tiny_patch16_224.augreg_in21k", None)


def test_a_path_named_as_a_preset_is_ambiguous(inside: Path) -> None:
    (inside / "demo").touch()
    assert "ambiguous" in refused(["data.path=d", "model=demo"])
    assert compose("train", ["data.path=d", "model=./demo"]).model.checkpoint == "./demo"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data=nowhere"], "no such path and no preset"),
        (["data=missing/folder"], "no such path and no preset"),
        (["data.path=d", "model=missing.pth"], "no such path"),
        (["data.path=d", "model=missing/encoder.safetensors"], "no such path"),
        ([], "missing: data="),
        (["data.path=d", "max_epoch=3"], "did you mean 'trainer.max_epochs'?"),
        (["data.path=d", "lr=3"], "did you mean 'method.lr' or 'trainer.lr'?"),
        (["data.path=d", "trainer.max_epoch=3"], "did you mean 'trainer.max_epochs'?"),
        (["data.path=d", "trainr.lr=3"], "did you mean 'trainer.lr'?"),
        (["data.path=d", "metod=dfr"], "did you mean 'method'?"),
        (["data.path=d", "method=group_dr"], "did you mean 'group_dro'?"),
        (["data.path=d", "method=dfr,leace"], "one method"),
        (["data.path=d", "method=dfr", "method.step_size=3"], "it belongs to: group_dro"),
        (["data.path=d", "method.name=dfr"], "method=dfr"),
        (["data.path=d", "trainer=slurm"], "presets are: cpu"),
        (["data.path=d", "trainer.optimizer=lion"], "must be one of: adamw, adam, sgd"),
        (["data.path=d", "trainer.max_epochs=many"], "'many', but must be a whole number"),
        (["data.path=d", "data.batch_size=0"], "at least 1"),
        (["data.path=d", "model.drop_path=1.5"], "at most 1"),
        (["data.path=d", "seeds=0,a"], "'a', but must be a whole number"),
        (["data.path=d", "audit=strict"], "section"),
        (["data.path=d", "trainer.lr"], "NAME=VALUE"),
        (["data.path=d", "=3"], "NAME=VALUE"),
        (["data.path=d", "~trainer.lr=1"], "cannot be deleted"),
        (["data.path=d", "out=${nowhere.x}"], "refers to 'nowhere.x'"),
        (["data.path=d", "trainer.lr.x=1"], "unknown option 'trainer.lr.x'"),
    ],
)
def test_one_readable_line(inside: Path, overrides: list[str], says: str) -> None:
    assert says in refused(overrides)


def test_several_wrong_values_are_all_told() -> None:
    with pytest.raises(ConfigError) as caught:
        compose("train", ["data.path=d", "trainer.optimizer=lion", "data.batch_size=0"])
    assert len(caught.value.details) == 2


def test_plus_signs_of_the_published_style_are_accepted() -> None:
    assert compose("train", ["data.path=d", "+experiment=dne_finetune", "++seed=3"]).seed == 3


class TestPresetsOfTheUser:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "my présets"
        for group in ("trainer", "experiment", "method"):
            (folder / group).mkdir(parents=True)
        (folder / "trainer" / "mine.yaml").write_text("max_epochs: 7\n")
        (folder / "method" / "soft_dro.yaml").write_text("defaults: [group_dro]\nstep_size: 0.001\n")
        (folder / "experiment" / "study.yaml").write_text(
            "# @package _global_\ndefaults:\n  - override /trainer: mine\n  - override /method: soft_dro\nseeds: [4, 5]\n"
        )
        return folder

    def test_they_add_to_the_shipped_ones(self, folder: Path) -> None:
        config = compose("train", ["data.path=d", "experiment=study"], config_dir=folder)
        assert (config.trainer.max_epochs, config.seeds, config.method.name, config.method.step_size) == (7, [4, 5], "group_dro", 0.001)
        assert compose("train", ["data.path=d", "trainer=gpu"], config_dir=folder).trainer.accelerator == "gpu"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("max_epoch: 3\n", "preset trainer/bad: unknown option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
            ("max_epochs: many\n", "preset trainer/bad: trainer.max_epochs is 'many', but must be: integer"),
            ("optimizer: lion\n", "must be one of"),
            ("max_epochs: [3\n", "cannot be read"),
            ("- 3\n", "cannot be read"),
            ("defaults: [nothing_here]\n", "no preset 'nothing_here' of 'trainer'"),
        ],
    )
    def test_their_mistakes_are_said_in_one_line(self, folder: Path, text: str, says: str) -> None:
        (folder / "trainer" / "bad.yaml").write_text(text)
        assert says in refused(["data.path=d", "trainer=bad"], config_dir=folder)

    def test_a_name_that_is_shipped_already_is_refused(self, folder: Path) -> None:
        (folder / "trainer" / "gpu.yaml").write_text("max_epochs: 3\n")
        assert "give yours another name" in refused(["data.path=d"], config_dir=folder)

    def test_a_folder_that_is_not_there(self) -> None:
        assert "no such folder" in refused(["data.path=d"], config_dir="nowhere/at/all")


def test_other_commands() -> None:
    evaluated = compose("evaluate", ["model=runs/a", "sets.clinic=/data/b c", "sets.x=y=z", "audit.threshold=sensitivity=0.9"])
    assert evaluated.sets == {"clinic": "/data/b c", "x": "y=z"}
    assert evaluated.audit.threshold == "sensitivity=0.9"
    assert compose("predict", ["model=runs/a", "data=b"]).data == "b"
    assert "missing: out=" in refused(["model=a"], "export")
    assert "unknown option 'trainer.lr'" in refused(["model=a", "trainer.lr=1"], "export")
    assert "schema is 'nope'" in refused([], "nope")


def test_every_option_is_explained() -> None:
    for schema in SCHEMAS.values():
        for option in list_options(schema):
            assert option.help, option.name
            assert option.kind != "value", option.name


def test_print_config_shows_what_is_missing_and_the_methods_own_options() -> None:
    text = compose_yaml("train", ["method=group_dro"])
    assert "path: ???" in text
    assert "step_size: 0.01" in text


def test_another_applications_hydra_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text("a: 1\n")
    ConfigStore.instance().store(group="method", name="theirs", node={"b": 2})
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        compose("train", ["data.path=d"])
        assert hydra_compose("app", overrides=["+method=theirs"]) == {"a": 1, "method": {"b": 2}}
        assert set(ConfigStore.instance().repo["method"]) == {"theirs.yaml"}
    del ConfigStore.instance().repo["method"]
    assert not GlobalHydra.instance().is_initialized()


def test_presets_are_beside_the_code() -> None:
    assert sorted(path.name for path in PRESETS.iterdir()) == ["data", "experiment", "method", "model", "trainer"]
