"""An edit on the images of somebody's request, whatever shape the request has."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from evenhand.edits.artifact import StoredEdit
from evenhand.models.protocol import Tensor
from evenhand.serve.images import Grid, bad, may_be_colour, read_images, write_images


class Editor:
    """Puts an edit on tensors and files; safe for several threads, which take turns.

    Args:
        stored: the edit.
    """

    def __init__(self, stored: StoredEdit) -> None:
        self.stored = stored
        self.grid = Grid(*stored.edit.grid)
        self._one_edit = threading.Lock()

    def edited(self, tensor: Tensor, wanted: int | None = None, go_on: Callable[[], bool] = lambda: True) -> Tensor:
        """The images of a tensor, edited, in a tensor of the same kind.

        Args:
            tensor: FP32, UINT8 or BYTES (a file each), counted before.
            wanted: channels that the model wants; a tensor of one channel is repeated to three.
            go_on: asked before every file; false where nobody waits any more.

        Raises:
            Refusal: 400, images of another grid, files that cannot be read, colour where the edit is for grey.
        """
        grid, files = self.grid, tensor.datatype == "BYTES"
        one_channel = grid.channels == 1
        if one_channel and may_be_colour(tensor):
            grid = Grid(3, grid.height, grid.width)
        elif not files and self.stored.edit.takes((tensor.data.shape[1], grid.height, grid.width)):
            grid = Grid(tensor.data.shape[1], grid.height, grid.width)
        sent = read_images(tensor, grid, False, go_on)
        values = sent.values if sent.values.flags.writeable else sent.values.copy()
        out = self._apply_by_channels(values) if one_channel and grid.channels == 3 else self._apply(values)
        if not files and out.shape[1] == 1 and wanted == 3:
            out = np.repeat(out, 3, axis=1)
        return write_images(out, sent, grey=one_channel)

    def _apply_by_channels(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Images of three channels under an edit for one: three equal channels are edited as one, and come out equal.

        Raises:
            Refusal: 400, an image in colour, which this edit cannot change.
        """
        grey = (values == values[:, :1]).all(axis=(1, 2, 3))
        if not grey.all() and not self.stored.edit.any_channels:
            position = int(np.argmin(grey)) + 1
            raise bad(
                f"image {position} of {len(values)} is in colour (its three channels differ), but this proxy's edit is for grey images, "
                f"{self.grid} (channels, height, width); send one channel, or three equal ones"
            )
        out = np.empty_like(values)
        for chosen, channels in ((grey, 1), (~grey, 3)):
            if chosen.any():
                out[chosen] = self._apply(values[chosen, :channels])
        return out

    def _apply(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with self._one_edit, torch.inference_mode():
            out: npt.NDArray[np.float32] = self.stored.edit(torch.from_numpy(values)).numpy()
        return out
