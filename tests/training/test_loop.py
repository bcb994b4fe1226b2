"""The loop: it learns, does what each option says, and fails with a sentence."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from torch import nn

from evenhand.errors import ConfigError, InputError, NonFiniteLossError
from evenhand.training import GroupDROLoss, predict_model, train_model
from evenhand.training.losses import MaskedLoss

CPU = torch.device("cpu")


class Spy(MaskedLoss):
    """Keeps what the loop gives to a loss."""

    def __init__(self, kind="binary"):
        super().__init__(kind)
        self.calls = []

    def forward(self, logits, y, cells=None, weight=None):
        self.calls.append((y.clone(), cells, weight))
        return super().forward(logits, y, cells, weight)


@pytest.mark.parametrize(("kind", "outputs", "labels"), [("binary", 1, 1), ("multilabel", 3, 3), ("multiclass", 3, 1)])
def test_it_learns_every_kind_of_task(lab, kind, outputs, labels):
    train, val = lab.split(160, kind, n_labels=labels), lab.split(60, kind, seed=1, n_labels=labels)
    outcome = train_model(lab.model(outputs), train, val, lab.setup(kind, max_epochs=12, lr=0.02))
    assert outcome.history[outcome.best_epoch - 1]["val_auc"] > 0.85
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]
    scores = predict_model(outcome.model, val.x, 16, CPU, kind)
    assert scores.shape == (60, outputs)
    assert scores.dtype == np.float64
    if kind == "multiclass":
        assert scores.sum(axis=1) == pytest.approx(np.ones(60))


def test_one_step_of_sgd_is_the_step_done_by_hand(lab):
    train = lab.split(8)
    model, reference = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    reference.load_state_dict(model.state_dict())
    known = ~np.isnan(train.y[:, 0])
    loss = nn.functional.binary_cross_entropy_with_logits(reference(train.x.pixels[known]), torch.from_numpy(train.y[known]))
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.5 * parameter.grad
    options = {"optimizer": "sgd", "schedule": "constant", "weight_decay": 0, "clip_norm": 0.05, "max_epochs": 1, "lr": 0.5}
    train_model(model, train, lab.split(0), lab.setup(**options))
    assert norm > 0.05
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)


def test_accumulated_batches_step_like_one_large_batch(lab):
    train, val = lab.split(33, "multilabel", n_labels=2), lab.split(0, "multilabel", n_labels=2)
    train.y[:] = np.nan_to_num(train.y)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(64, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"optimizer": "sgd", "schedule": "constant", "max_epochs": 2, "lr": 0.1}
    train_model(models[0], train, val, lab.setup("multilabel", batch_size=33, **options))
    train_model(models[1], train, val, lab.setup("multilabel", batch_size=9, accumulate=4, **options))
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_ones(lab):
    train, val = lab.split(40), lab.split(20, seed=1)
    runs = [train_model(lab.model(), train, val, lab.setup(seed=seed, augment="chest_film")) for seed in (0, 0, 1)]
    assert runs[0].history == runs[1].history
    assert runs[0].history != runs[2].history
    for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_callers_random_streams_are_left_alone(lab):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    train_model(lab.model(), lab.split(20), lab.split(10, seed=1), lab.setup(max_epochs=1, mixup=0.2, random_erasing=0.5))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_the_best_epochs_weights_are_returned(lab):
    train, val = lab.split(40), lab.split(30, seed=1)
    outcome = train_model(lab.model(), train, val, lab.setup(max_epochs=6, lr=0.3, schedule="constant"))
    aucs = [record["val_auc"] for record in outcome.history]
    assert outcome.best_epoch == int(np.argmax(aucs)) + 1
    again = train_model(outcome.model, train, val, lab.setup(max_epochs=1, lr=1e-12, optimizer="sgd", warmup_epochs=1))
    assert again.history[0]["val_auc"] == pytest.approx(max(aucs), abs=0.05)


def test_early_stopping_stops(lab):
    setup = lab.setup(max_epochs=30, early_stopping=2, lr=1e-12, monitor="val_loss", schedule="constant")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).requires_grad_(True)
    outcome = train_model(model, lab.split(20), lab.split(20, seed=1), setup)
    assert outcome.stopped_epoch == outcome.best_epoch + 2 < 30


def test_plateau_drops_the_rate(lab):
    options = {"optimizer": "sgd", "momentum": 0.9, "schedule": "plateau", "plateau_patience": 0, "gamma": 0.5, "clip_norm": 0.5}
    outcome = train_model(lab.model(), lab.split(20), lab.split(12, seed=1), lab.setup(max_epochs=8, lr=0.03, **options))
    rates = [record["lr"] for record in outcome.history]
    assert rates[0] == 0.03
    assert rates[-1] < 0.03
    assert all(b in (a, a * 0.5) for a, b in pairwise(rates))


def test_the_moving_average_is_what_is_kept(lab):
    """With a decay of one half, one epoch of one batch ends half-way between the first and the stepped weights."""
    train = lab.split(8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    start = model[1].weight.detach().clone()
    stepped = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    stepped.load_state_dict(model.state_dict())
    options = {"optimizer": "sgd", "schedule": "constant", "max_epochs": 1, "lr": 0.5}
    train_model(stepped, train, lab.split(0), lab.setup(**options))
    train_model(model, train, lab.split(0), lab.setup(ema_decay=0.5, **options))
    assert torch.allclose(model[1].weight, (start + stepped[1].weight) / 2, atol=1e-6)


def test_the_loss_is_given_cells_and_weights_of_its_rows(lab):
    train, spy = lab.split(22), Spy()
    cells, weight = np.arange(22), np.arange(22) / 10
    train.y[:] = np.where(np.isnan(train.y), np.nan, np.arange(22)[:, None] % 2)
    train_model(lab.model(), train, lab.split(0), lab.setup(max_epochs=1, batch_size=8), loss=spy, cells=cells, sample_weight=weight)
    seen = torch.cat([call[1] for call in spy.calls]).tolist()
    assert sorted(seen) == [row for row in range(22) if row % 11]
    for y, c, w in spy.calls:
        assert y[:, 0].tolist() == [row % 2 for row in c.tolist()]
        assert w.tolist() == pytest.approx([row / 10 for row in c.tolist()])


def test_balanced_cells_are_seen_equally_often(lab):
    spy = Spy()
    cells = np.where(np.arange(40) < 34, 0, 1)
    cells[39] = -1
    train_model(lab.model(), lab.split(40), lab.split(0), lab.setup(max_epochs=2), loss=spy, cells=cells, balance=True)
    seen = torch.cat([call[1] for call in spy.calls]).bincount()
    assert abs(int(seen[0] - seen[1])) <= 2


def test_mixing_mixes_labels_and_weights_alike(lab):
    spy = Spy("multiclass")
    train = lab.split(20, "multiclass")
    train.y[:] = np.arange(20) % 2
    setup = lab.setup("multiclass", max_epochs=3, mixup=1.0, cutmix=1.0)
    train_model(lab.model(3), train, lab.split(0, "multiclass"), setup, loss=spy, sample_weight=train.y.astype(float))
    y, weight = torch.cat([call[0] for call in spy.calls]), torch.cat([call[2] for call in spy.calls])
    assert torch.allclose(y.sum(dim=1), torch.ones(len(y)))
    assert torch.allclose(weight, y[:, 1], atol=1e-6)
    assert ((y > 0.01) & (y < 0.99)).any()


def test_group_dro_trains_and_refuses_mixing(lab):
    train = lab.split(40)
    cells = np.arange(40) % 2
    loss = GroupDROLoss("binary", np.bincount(cells), step_size=0.5)
    train_model(lab.model(), train, lab.split(10, seed=1), lab.setup(), loss=loss, cells=cells)
    assert loss.q[0] != 0.5
    with pytest.raises(ConfigError, match=r"trainer\.mixup=0"):
        train_model(lab.model(), train, lab.split(0), lab.setup(mixup=0.1), loss=loss, cells=cells)


def test_bf16_on_a_processor_gives_the_model_back_in_fp32(lab):
    model = lab.model()
    outcome = train_model(model, lab.split(40), lab.split(20, seed=1), lab.setup(precision="bf16"))
    out = outcome.model(torch.rand(2, 1, 8, 8))
    assert out.dtype == torch.float32
    assert "forward" not in vars(model)
    exact = train_model(lab.model(), lab.split(40), lab.split(20, seed=1), lab.setup(precision="fp32"))
    assert exact.history[0]["train_loss"] == pytest.approx(outcome.history[0]["train_loss"], abs=0.02)


def test_channels_last_changes_the_layout_and_not_the_result(lab):
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return x

    train, val = lab.split(40, channels=3), lab.split(20, seed=1, channels=3)
    options = {"optimizer": "sgd", "max_epochs": 2}
    plain = train_model(lab.model(channels=3), train, val, lab.setup(**options))
    model = nn.Sequential(Looks(), *lab.model(channels=3))
    outcome = train_model(model, train, val, lab.setup(channels_last=True, **options))
    assert all(seen)
    assert outcome.history[-1] == pytest.approx(plain.history[-1], abs=1e-5)
    assert all(value.is_contiguous() for value in outcome.model.state_dict().values())


@pytest.mark.parametrize(("kind", "outputs"), [("binary", 1), ("multiclass", 3)])
def test_class_weights_balance_what_the_loss_sees(lab, kind, outputs):
    train = lab.split(40, kind)
    if kind == "binary":
        train.y[5:] = 0.0
    setups = [lab.setup(kind, class_weights=name) for name in ("none", "balanced")]
    histories = [train_model(lab.model(outputs), train, lab.split(0, kind), setup).history for setup in setups]
    assert histories[0] != histories[1]


def test_a_split_without_validation_takes_the_last_epoch(lab, caplog):
    outcome = train_model(lab.model(), lab.split(20), lab.split(0), lab.setup())
    assert outcome.best_epoch == outcome.stopped_epoch == 3
    assert outcome.history[-1]["val_auc"] is None
    assert "no validation row is labelled" in outcome.notes[0]


def test_progress_and_report_follow_the_epochs(lab, capfd):
    lines = []
    train_model(lab.model(), lab.split(20), lab.split(20, seed=1), lab.setup(progress=True, report=lines.append))
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert capfd.readouterr().out == ""


def test_no_epochs_is_the_model_as_it_was(lab):
    model = lab.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = train_model(model, lab.split(20), lab.split(10), lab.setup(max_epochs=0))
    assert (outcome.history, outcome.best_epoch) == ([], 0)
    assert all(torch.equal(value, before[name]) for name, value in outcome.model.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(lab):
    store, rounds = lab.MemoryStore(), []

    class Poison(MaskedLoss):
        def forward(self, logits, y, cells=None, weight=None):
            rounds.append(1)
            return logits.sum() * (float("nan") if len(rounds) > 4 else 1.0)

    with pytest.raises(NonFiniteLossError, match=r"epoch 2, step 2.*lower trainer\.lr.*checkpoint of epoch 1 is kept"):
        train_model(lab.model(), lab.split(40), lab.split(20, seed=1), lab.setup(store=store), loss=Poison("binary"))
    assert store.get("checkpoint")["epoch"] == 1


def test_weights_that_overflow_are_found_without_validation(lab):
    setup = lab.setup(optimizer="sgd", lr=1e38, max_epochs=1, batch_size=64, schedule="constant")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(NonFiniteLossError, match="checkpoint of epoch 0"):
        train_model(model, lab.split(20), lab.split(0), setup, loss=lambda logits, y, cells, weight: (logits * 1e3).sum())


def test_wrong_input_is_refused_with_a_sentence(lab):
    train, val = lab.split(12), lab.split(6, seed=1)
    with pytest.raises(InputError, match="cells has 3 entries, but there are 12 training rows"):
        train_model(lab.model(), train, val, lab.setup(), cells=np.zeros(3, int))
    with pytest.raises(InputError, match="one cell a row"):
        train_model(lab.model(), train, val, lab.setup(), balance=True)
    with pytest.raises(ConfigError, match=r"data\.augment is 'xray'"):
        train_model(lab.model(), train, val, lab.setup(augment="xray"))
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train_model(lab.model(), train, val, lab.setup(precision="fp16"))
    train.y[:] = np.nan
    with pytest.raises(InputError, match="none of the 12 training rows has a label"):
        train_model(lab.model(), train, val, lab.setup())


def test_all_unusable_options_are_named_at_once(lab):
    with pytest.raises(ConfigError) as caught:
        train_model(lab.model(), lab.split(4), lab.split(0), lab.setup(ema_decay=1.0, optimizer="lion", layer_decay=0.0))
    text = str(caught.value)
    for part in ("ema_decay is 1.0, but must be in [0, 1)", "optimizer is 'lion'", "layer_decay is 0.0, but must be in (0, 1]"):
        assert part in text


def test_warnings_stay_errors_in_the_reading_thread(lab):
    class Warner(lab.MemoryImages):
        def batch(self, positions):
            warnings.warn("bad image", stacklevel=1)
            return super().batch(positions)

    train = lab.split(12)
    object.__setattr__(train, "x", Warner(train.x.pixels))
    with pytest.raises(UserWarning, match="bad image"):
        train_model(lab.model(), train, lab.split(0), lab.setup())


class TinyTransformer(nn.Module):
    """A wrapper like the product's classifier, around a timm vision transformer of two blocks."""

    def __init__(self):
        super().__init__()
        options = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2, "global_pool": "avg", "drop_path_rate": 0.2}
        self.network = timm.create_model("vit_tiny_patch16_224", num_classes=1, **options)

    def forward(self, images):
        return self.network(images - 0.5)


PUBLISHED = {
    "dne": {"lr": None, "base_lr": 2.5e-4, "layer_decay": 0.55, "weight_decay": 0.05, "warmup_epochs": 1, "min_lr": 1e-5},
    "bmft": {"optimizer": "sgd", "lr": 0.03, "momentum": 0.9, "schedule": "plateau", "clip_norm": 0.5},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_can_be_written_and_run(lab, name):
    setup = lab.setup(augment="published_dne" if name == "dne" else "none", max_epochs=2, **PUBLISHED[name])
    outcome = train_model(TinyTransformer(), lab.split(20, channels=3), lab.split(20, seed=1, channels=3), setup)
    assert outcome.stopped_epoch == 2
    assert outcome.history[1]["lr"] == pytest.approx({"dne": 1e-5 + (2.5e-4 / 16 - 1e-5) / 2, "bmft": 0.03}[name])
