"""What objectives compute with, imported at the first use: a method's file is read for its settings too, and help must
not wait seconds for torch."""

import importlib
from typing import TYPE_CHECKING, Any


class _Late:
    """Stands for a module, or for something in one, until it is used."""

    def __init__(self, module: str, name: str = ""):
        self._module, self._name = module, name
        self._found: Any = None

    def _find(self) -> Any:
        if self._found is None:
            module = importlib.import_module(self._module)
            self._found = getattr(module, self._name) if self._name else module
        return self._found

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._find(), attribute)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._find()(*arguments, **named)


if TYPE_CHECKING:
    import torch as torch

    from fastdrpl.detectors.agreement import Agreement as Agreement
    from fastdrpl.detectors.beta_mixture import LossMixture as LossMixture
    from fastdrpl.detectors.co_division import CoDivided as CoDivided
    from fastdrpl.detectors.co_division import co_divide as co_divide
    from fastdrpl.detectors.confidence import Confidence as Confidence
    from fastdrpl.detectors.held_out import HeldOut as HeldOut
    from fastdrpl.kernels.beta_mixture import fit_beta_mixture as fit_beta_mixture
    from fastdrpl.kernels.cpu.philox import words as compiled_words
    from fastdrpl.kernels.gaussian_mixture import min_max as min_max
    from fastdrpl.kernels.loss_head import Regulariser as Regulariser
    from fastdrpl.kernels.loss_head import cross_entropy as cross_entropy
    from fastdrpl.kernels.loss_head import entropy as entropy
    from fastdrpl.kernels.loss_head import label_loss as label_loss
    from fastdrpl.kernels.loss_head import loss_head as loss_head
    from fastdrpl.kernels.loss_head import predict as predict
    from fastdrpl.kernels.loss_head import prior as prior
    from fastdrpl.kernels.mixup import mix as mix
    from fastdrpl.kernels.pseudo_label import renew_targets as renew_targets
    from fastdrpl.kernels.pseudo_label import ring_update as ring_update
    from fastdrpl.matching import Matching as Matching
    from fastdrpl.matching import draw_matching as draw_matching
    from fastdrpl.matching import matching_loss as matching_loss
    from fastdrpl.matching import ramp_up as ramp_up
    from fastdrpl.matching import refine_labels as refine_labels
    from fastdrpl.matching import share_of_copies as share_of_copies
    from fastdrpl.matching import sharpen as sharpen
    from fastdrpl.mixing import draw_labels as draw_labels
    from fastdrpl.mixing import draw_mixing as draw_mixing
    from fastdrpl.mixing import one_hot as one_hot
    from fastdrpl.posteriors import keep_mixture as keep_mixture
    from fastdrpl.posteriors import posterior_of as posterior_of
else:
    torch = _Late("torch")
    LossMixture = _Late("fastdrpl.detectors.beta_mixture", "LossMixture")
    Confidence = _Late("fastdrpl.detectors.confidence", "Confidence")
    fit_beta_mixture = _Late("fastdrpl.kernels.beta_mixture", "fit_beta_mixture")
    Regulariser = _Late("fastdrpl.kernels.loss_head", "Regulariser")
    cross_entropy = _Late("fastdrpl.kernels.loss_head", "cross_entropy")
    entropy = _Late("fastdrpl.kernels.loss_head", "entropy")
    label_loss = _Late("fastdrpl.kernels.loss_head", "label_loss")
    loss_head = _Late("fastdrpl.kernels.loss_head", "loss_head")
    predict = _Late("fastdrpl.kernels.loss_head", "predict")
    prior = _Late("fastdrpl.kernels.loss_head", "prior")
    mix = _Late("fastdrpl.kernels.mixup", "mix")
    renew_targets = _Late("fastdrpl.kernels.pseudo_label", "renew_targets")
    ring_update = _Late("fastdrpl.kernels.pseudo_label", "ring_update")
    draw_labels = _Late("fastdrpl.mixing", "draw_labels")
    draw_mixing = _Late("fastdrpl.mixing", "draw_mixing")
    one_hot = _Late("fastdrpl.mixing", "one_hot")
    Agreement = _Late("fastdrpl.detectors.agreement", "Agreement")
    HeldOut = _Late("fastdrpl.detectors.held_out", "HeldOut")
    compiled_words = _Late("fastdrpl.kernels.cpu.philox", "words")
    keep_mixture = _Late("fastdrpl.posteriors", "keep_mixture")
    posterior_of = _Late("fastdrpl.posteriors", "posterior_of")
    CoDivided = _Late("fastdrpl.detectors.co_division", "CoDivided")
    co_divide = _Late("fastdrpl.detectors.co_division", "co_divide")
    min_max = _Late("fastdrpl.kernels.gaussian_mixture", "min_max")
    Matching = _Late("fastdrpl.matching", "Matching")
    draw_matching = _Late("fastdrpl.matching", "draw_matching")
    matching_loss = _Late("fastdrpl.matching", "matching_loss")
    ramp_up = _Late("fastdrpl.matching", "ramp_up")
    refine_labels = _Late("fastdrpl.matching", "refine_labels")
    share_of_copies = _Late("fastdrpl.matching", "share_of_copies")
    sharpen = _Late("fastdrpl.matching", "sharpen")
