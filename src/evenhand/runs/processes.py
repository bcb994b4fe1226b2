"""Commands started on several processes (torchrun): what the first tells the others, and searches in which they only embed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

from evenhand.config.editing import EditHeadConfig, EditTrainConfig, GeZOConfig
from evenhand.config.schema import TrainConfig
from evenhand.models.embedder import LocalEmbedder
from evenhand.models.shared import Relay
from evenhand.runs.task import Encoder, pick_device

log = logging.getLogger(__name__)


def world() -> int:
    """How many processes a command was started on."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def told_by_first(accelerator: str, done: bool = False) -> bool:
    """Whether the run is finished, as the first of several processes finds: all must go on, or none."""
    if world() == 1:
        return done
    from accelerate.utils import broadcast_object_list

    _join(accelerator)
    return bool(broadcast_object_list([done])[0])


def follow_first(config: TrainConfig | EditTrainConfig, otherwise: Callable[[], None]) -> None:
    """Other processes: nothing where the run is finished, the embedding of shares in a search by queries, else the same as the first."""
    if told_by_first(config.trainer.accelerator):
        return
    if _only_first_works(config):
        help_first(config)
    else:
        otherwise()


@contextlib.contextmanager
def helped(config: TrainConfig | EditTrainConfig) -> Iterator[Relay | None]:
    """First process: a relay to the others, which are in `help_first`, until the block ends; None where there are none, or all do the same.

    A server is asked by the first process alone.
    """
    if world() == 1 or config.model.url or not _only_first_works(config):
        yield None
        return
    _join(config.trainer.accelerator)
    with Relay(pick_device(config.trainer.accelerator)) as relay:
        yield relay
    if relay.n_images:
        log.info("%d images were embedded on %d processes", relay.n_images, relay.world)


def help_first(config: TrainConfig | EditTrainConfig) -> None:
    """Other processes: embed what the first sends, until it leaves `helped`; there is nothing to do where the encoder is a server.

    Raises:
        RunError: the first process is gone.
    """
    if config.model.url:
        return
    _join(config.trainer.accelerator)
    device = pick_device(config.trainer.accelerator)

    def build() -> LocalEmbedder:
        return LocalEmbedder(Encoder(config.model, config.seed, device, None).classifier, config.model.precision, device=device)

    Relay(device).serve(build)


def _only_first_works(config: TrainConfig | EditTrainConfig) -> bool:
    """Whether the others do nothing but embed: where heads are fitted, or an edit is searched by queries."""
    return isinstance(config, EditHeadConfig) or isinstance(config.method, GeZOConfig)


def _join(accelerator: str) -> None:
    """Start torch.distributed, where it has not been started."""
    from accelerate import PartialState

    PartialState(cpu=pick_device(accelerator).type == "cpu")
