"""A training loop that does the work of the published code, the way such code is usually written.

What it does is in the paper and in what is known of its authors' release, of which nothing is copied: a torch
DataLoader whose worker processes make pillow images and transform them, float32, contiguous tensors, a network called
once a step (twice in the semi-supervised stages, both times building a graph), predictions moved to the host sample by
sample, three numbers read from the device in every step; after every epoch the losses of all training images,
augmented, with a beta mixture fitted by scipy, and a pass over the test images.

Two things are kinder than there. Worker processes stay from epoch to epoch, and one pair of loaders is used throughout:
starting them costs about the same however long an epoch is, and would weigh too much in a short one. And cuDNN works as
torch sets it up today (TF32 in convolutions), but deterministically, as published.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.epoch_data import AVERAGE, DECAY, ENTROPY, MOMENTUM, PRIOR, REDRAW, Peer
from bench.epoch_ours import wait_for
from fastdrpl.kernels.beta_mixture import fit_beta_mixture
from fastdrpl.models import build_model

TEST_BATCH = 100


class PillowImages(Dataset[tuple[Tensor, int, int]]):
    """A pillow image of each row, transformed, with its label and its number."""

    def __init__(self, pixels: np.ndarray, label: np.ndarray, transform: Callable[[Image.Image], Tensor]):
        self.pixels, self.label, self.transform = pixels, label, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.pixels[row])), int(self.label[row]), row


class Reference:
    """The published loop on a peer's work; `epoch` returns the mean training loss."""

    def __init__(self, peer: Peer, workers: int, *, everything: bool = True):
        self.peer, self.everything, device = peer, everything, peer.device
        self.network = build_model("preact_resnet18", peer.classes, peer.width, peer.seed).to(device)
        self.optimiser = torch.optim.SGD(
            self.network.parameters(), lr=peer.rate, momentum=MOMENTUM, weight_decay=DECAY
        )
        size = peer.pixels.shape[1]
        last = [transforms.ToTensor(), transforms.Normalize(peer.mean, peer.std)]
        random = [transforms.RandomCrop(size, padding=peer.pad)] if peer.pad else []
        random += [transforms.RandomHorizontalFlip()] if peer.flip else []
        options = {
            "num_workers": workers,
            "pin_memory": device.type == "cuda",
            "persistent_workers": workers > 0,
        }
        self.train_loader = DataLoader(
            PillowImages(peer.pixels, peer.given, transforms.Compose([*random, *last])),
            peer.batch_size,
            shuffle=True,
            **options,
        )
        self.test_loader = DataLoader(
            PillowImages(peer.test_pixels, peer.test_label, transforms.Compose(last)), TEST_BATCH, **options
        )
        self.targets = peer.targets()
        self.ring = np.zeros((AVERAGE, *self.targets.shape), np.float32)
        self.number, self.random = 0, np.random.default_rng(1)

    def epoch(self) -> float:
        """Train; then, in an epoch of `everything`, track all losses, fit, and test."""
        device = self.peer.device
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
            loss = self._train()
            if self.everything:
                self._track()
                self._test()
        wait_for(device)
        self.number += 1
        return loss

    def _train(self) -> float:
        self.network.train()
        seen = np.zeros_like(self.targets)
        total, right, right5, images = 0.0, 0.0, 0.0, 0
        step = self._relabel_step if self.peer.task == "relabel" else self._semi_step
        for inputs, label, index in self.train_loader:
            inputs, rows = inputs.to(self.peer.device), index.numpy().tolist()
            target = torch.from_numpy(self.targets[rows]).to(self.peer.device)
            loss, prediction, probability = step(inputs, target, index)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            seen[rows] = probability.detach().cpu().numpy().tolist()
            top = prediction.topk(min(5, self.peer.classes)).indices == label.to(self.peer.device)[:, None]
            total += loss.item() * len(rows)
            right += top[:, 0].sum().item()
            right5 += top.sum().item()
            images += len(rows)
        self._renew(seen)
        return total / images

    def _relabel_step(self, inputs: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.network(inputs)
        probability = F.softmax(logits, 1)
        return cross_entropy(logits, target) + regulariser(logits), logits, probability

    def _semi_step(self, inputs: Tensor, target: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        unmixed = self.network(inputs)  # its graph is thrown away
        probability = F.softmax(unmixed, 1)
        coefficient, partner = self.draw_mixing(index)
        partner = partner.to(self.peer.device)
        logits = self.network(coefficient * inputs + (1 - coefficient) * inputs[partner])
        loss = coefficient * cross_entropy(logits, target)
        loss = loss + (1 - coefficient) * cross_entropy(logits, target[partner])
        return loss + regulariser(logits), logits, probability

    def draw_mixing(self, index: Tensor) -> tuple[float, Tensor]:
        """A coefficient from Beta(1, 1) and a partner for each of a batch: (b,) places in it."""
        return float(self.random.beta(1, 1)), torch.randperm(len(index))

    def _renew(self, seen: np.ndarray) -> None:
        """The next epoch's targets."""
        if self.peer.task == "relabel":
            self.ring[self.number % AVERAGE] = seen
            self.targets = self.ring.mean(0)
            return
        unlabelled = np.flatnonzero(~self.peer.labelled)
        self.targets[unlabelled] = seen[unlabelled]
        fresh = self.random.permutation(unlabelled)[: int(REDRAW * len(unlabelled))]
        self.targets[fresh] = 1 / self.peer.classes

    def _track(self) -> None:
        """The losses of all training images to the given labels, augmented, and the mixture of them."""
        self.network.eval()
        losses = np.zeros(len(self.peer.pixels))
        with torch.no_grad():
            for inputs, label, index in self.train_loader:
                inputs, label = inputs.to(self.peer.device), label.to(self.peer.device)
                loss = F.cross_entropy(self.network(inputs), label, reduction="none")
                losses[index.numpy()] = loss.cpu().numpy()
        fit_beta_mixture(losses, backend="reference", iterations=10)

    def _test(self) -> None:
        """Accuracy and loss on the test images."""
        self.network.eval()
        right, total = 0.0, 0.0
        with torch.no_grad():
            for inputs, label, _ in self.test_loader:
                inputs, label = inputs.to(self.peer.device), label.to(self.peer.device)
                logits = self.network(inputs)
                total += F.cross_entropy(logits, label).item()
                right += (logits.argmax(1) == label).sum().item()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(b, C), (b, C) -> (): the mean of -s . log p."""
    return -(target * F.log_softmax(logits, 1)).sum(1).mean()


def regulariser(logits: Tensor) -> Tensor:
    """(b, C) -> (): the pull of the mean prediction to the uniform one, and the entropy of predictions."""
    probability = F.softmax(logits, 1)
    uniform = torch.full_like(probability[0], 1 / probability.shape[1])
    prior = -(uniform * probability.mean(0).log()).sum()
    entropy = -(probability * F.log_softmax(logits, 1)).sum(1).mean()
    return PRIOR * prior + ENTROPY * entropy
