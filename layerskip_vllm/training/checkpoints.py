"""Which checkpoints are whole, and how the final one comes to be: at once or not at all."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from layerskip_vllm.checkpoint.settings import CONFIG_FILE

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"
"""Folder in which the final checkpoint is made."""


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a run that was saved to its end.

    The Trainer writes its state last, so a checkpoint with a readable state has all the rest.
    """
    steps = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-([0-9]+)", path.name))
    }
    for step in sorted(steps, reverse=True):
        try:
            json.loads((steps[step] / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("%s was not saved to its end and is left out", steps[step])
        else:
            return steps[step]
    return None


@contextmanager
def finishing(folder: Path, is_main: bool) -> Iterator[Path]:
    """Make the final checkpoint in a folder of its own, and move it at the end of the block.

    `config.json` moves last: without it nothing takes the folder for a checkpoint.

    Args:
        folder: Where the checkpoint is to be.
        is_main: Whether this rank writes.
    """
    unfinished = folder / UNFINISHED
    if is_main:
        shutil.rmtree(unfinished, ignore_errors=True)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
    yield unfinished
    if is_main:
        files = sorted(unfinished.iterdir(), key=lambda path: path.name == CONFIG_FILE)
        for file in files:
            os.replace(file, folder / file.name)
        unfinished.rmdir()
