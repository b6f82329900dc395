"""Seconds of a relabelling and of a semi-supervised epoch, and bf16 beside fp32 over the first steps.

    python bench/train_epochs.py --data data/cifar10                          # a GPU, the full network
    python bench/train_epochs.py --data data/cifar10 --limit 512 --width 8    # a rehearsal on the CPU

The claim behind it: an epoch of CIFAR-10 costs 391 steps of 128 images, with one forward pass in stage 1 and two
in stages 2 and 3. Rows go to bench/results/train_epochs.jsonl.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import contextlib

import numpy as np
import torch

from bench.rows import RESULTS, write_row
from fastdrpl.config import EngineConfig
from fastdrpl.epochs import plan_rounds, train_epoch
from fastdrpl.eyes import Eyes
from fastdrpl.learners import Learners
from fastdrpl.loaders.dataset import open_dataset
from fastdrpl.loaders.order import Pass, Purpose
from fastdrpl.loaders.resident import ResidentLoader
from fastdrpl.machine import Machine, build_machine
from fastdrpl.models import build_model
from fastdrpl.pixels import resolve_transform
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named
from fastdrpl.runner import StepRunner
from fastdrpl.stages import Stage
from fastdrpl.steps import StepInputs
from fastdrpl.store import LabelStore

CONFIG = recipe_named("cifar10").config_for("drpl")


class Bench:
    """One learner on the data, and epochs of a stage."""

    def __init__(self, data: Path, limit: int, width: int, precision: str, mode: str):
        self.machine: Machine = build_machine(EngineConfig(precision=precision, mode=mode))
        dataset = open_dataset(data)
        split = dataset.split("train")
        self.rows = np.arange(limit or len(split))
        loader = ResidentLoader(split, self.rows, self.machine.device)
        self.eyes = Eyes(loader, resolve_transform(CONFIG.augment, dataset), len(self.rows))
        self.classes, self.given = len(dataset.class_names), torch.as_tensor(split.label[self.rows])
        self.width = width
        self.restart()

    def restart(self) -> None:
        """Fresh weights."""
        network = build_model("preact_resnet18", self.classes, self.width, CONFIG.seed).to(
            self.machine.device
        )
        self.learners = Learners([network], CONFIG.optimiser, self.machine)
        self.runner = StepRunner(self.machine)
        self.inputs = StepInputs(self.machine.device, still=self.machine.ladder.mode == "captured")

    def begin(self, stage: Stage) -> None:
        """A label store for the stage; a third of the samples are unlabelled."""
        self.store = LabelStore(len(self.rows), self.machine.device)
        self.store.put("given", self.given)
        self.store.put("labelled", torch.as_tensor(self.rows % 3 > 0))
        stage.objective.begin(self.store, self.classes, Pass(1, 1, 0, Purpose.train))

    def epoch(self, stage: Stage, number: int, steps: int = 0) -> tuple[float, list[float]]:
        """Seconds of an epoch (or of its first steps) and the loss of each step."""
        pass_ = Pass(1, 1, number, Purpose.train)
        rounds = plan_rounds(stage.objective, self.store, self.eyes, pass_, CONFIG.batch_size, self.machine)
        sums: list[torch.Tensor] = []

        class Enough(Exception):
            pass

        def after(done: int, images: int) -> None:
            if steps:
                sums.append(self.learners.meter.values[0].clone())
                if done == steps:
                    raise Enough

        self.wait()
        start = time.perf_counter()
        with contextlib.suppress(Enough), self.runner.stream():
            train_epoch(
                self.learners,
                stage.objective,
                self.store,
                self.eyes,
                rounds,
                self.inputs,
                pass_,
                run=self.runner,
                start_step=0,
                after_step=after,
            )
        self.wait()
        seconds = time.perf_counter() - start
        self.learners.meter.refuse_bad(self.machine)
        self.learners.meter.finish(self.machine)
        totals = torch.stack(sums).cpu().numpy() if sums else np.zeros(0)
        return seconds, (np.diff(totals, prepend=0.0) / CONFIG.batch_size).tolist()

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.machine.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="prepared CIFAR-10")
    parser.add_argument("--limit", type=int, default=0, help="first images only; 0 = all")
    parser.add_argument("--width", type=int, default=64, help="width of the network")
    parser.add_argument(
        "--epochs", type=int, default=3, help="measured epochs of each stage, after one of warm-up"
    )
    parser.add_argument("--steps", type=int, default=200, help="steps that bf16 and fp32 are compared over")
    parser.add_argument("--mode", default="auto", help="of the steps: auto, eager, compiled or captured")
    parser.add_argument("--out", type=Path, default=RESULTS / "train_epochs.jsonl")
    words = parser.parse_args()
    relabel, semi, _ = plan_of(CONFIG)
    losses = {}
    for precision in ("fp32", "bf16"):
        torch.cuda.empty_cache()
        # Accelerate holds one precision for a process: its state is made anew.
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        bench = Bench(words.data, words.limit, words.width, precision, words.mode)
        bench.begin(relabel)
        losses[precision] = bench.epoch(relabel, 1, words.steps)[1]
        for name, stage in (("relabel", relabel), ("semi", semi)):
            bench.restart()
            bench.begin(stage)
            seconds = [bench.epoch(stage, number)[0] for number in range(1, words.epochs + 2)][1:]
            row = write_row(
                words.out,
                what=f"epoch_{name}",
                shape=[len(bench.rows), 32, 32, 3],
                dtype=precision,
                backend=f"{bench.machine.ladder.mode} {bench.machine.device.type}, width {words.width}",
                seconds=seconds,
                warmup=1,
                threads=bench.machine.threads,
                images_per_second=len(bench.rows) / float(np.median(seconds)),
            )
            print(
                f"{precision} {name:8} epoch {row['p50']:8.3f} s  {row['images_per_second']:10,.0f} images/s"
            )
    steps = min(map(len, losses.values()))
    full, half = (np.array(losses[p][:steps]) for p in ("fp32", "bf16"))
    print(
        f"bf16 beside fp32 over {steps} steps: largest difference of a step's loss {np.abs(full - half).max():.4f}, "
        f"mean of the last {min(20, steps)}: {full[-20:].mean():.4f} and {half[-20:].mean():.4f}"
    )


if __name__ == "__main__":
    main()
