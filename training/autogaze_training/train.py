"""``python -m autogaze_training.train DATA OUT``: trains, saves, and writes the checkpoint.

Stops at ``--seconds`` with its state saved; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import time
from pathlib import Path

import torch

from autogaze_training.checkpoint import write_checkpoint
from autogaze_training.config import TINY, TrainConfig
from autogaze_training.render import Atlas
from autogaze_training.trainer import Trainer
from autogaze_training.validate import validate

_LOG = logging.getLogger("autogaze_training")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="what prepare_data wrote")
    parser.add_argument("out", type=Path, help="state/ to go on from, log.jsonl, checkpoint/")
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--own-path-from", type=int, default=TrainConfig.own_path_from)
    parser.add_argument("--decay", type=float, default=TrainConfig.decay)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop and save after this time")
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    parser.add_argument("--tiny", action="store_true", help="a few small steps, to try the code")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--log-every", type=int, default=20)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = dataclasses.replace(
        TINY if args.tiny else TrainConfig(),
        seed=args.seed,
        **(
            {}
            if args.tiny
            else {"steps": args.steps, "own_path_from": args.own_path_from, "decay": args.decay}
        ),
    )
    started = time.monotonic()
    atlas = Atlas.load(args.data, device, limit=8 if args.tiny else None)
    compiled = device.type == "cuda" if args.compile is None else args.compile
    trainer = Trainer(config, atlas, device, compiled=compiled)
    state = args.out / "state"
    if (state / "model.pt").is_file():
        trainer.resume(state)
        _LOG.info("resumed at step %d", trainer.step)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "log.jsonl").open("a", encoding="utf-8") as log:
        for figures in trainer.run(args.seconds - (time.monotonic() - started), every=args.log_every):
            figures["seconds"] = round(time.monotonic() - started, 2)
            log.write(json.dumps({k: round(v, 5) for k, v in figures.items()}) + "\n")
            _LOG.info(" ".join(f"{name}={value:.4g}" for name, value in figures.items()))
    trainer.save(state)
    write_checkpoint(trainer.average, args.out / "checkpoint")
    _LOG.info("step %d of %d; %s", trainer.step, config.steps, args.out)
    if not args.tiny:
        held_out = Atlas.load(args.data, device, held_out=True)
        for name, value in validate(trainer.average, held_out, autocast=trainer.autocast).items():
            _LOG.info("held out: %s %s", name, value)


if __name__ == "__main__":
    main()
