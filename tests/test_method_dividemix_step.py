"""One step of DivideMix against the procedure written out."""

import dataclasses

import numpy as np
import pytest
import torch
from test_method_dividemix import DEFAULT, PIXELS, C, N, divided, softmax
from toy_steps import ToyNetwork, minibatch, on_ranks, pass_

from fastdrpl.kernels.loss_head import Share
from fastdrpl.methods.dividemix import Settings
from fastdrpl.stages import Step


def two_networks():
    """Two linear networks whose weights learn: (b, PIXELS) -> (b, C)."""
    weights = [
        torch.randn(PIXELS, C, generator=torch.Generator().manual_seed(s), requires_grad=True) for s in (5, 6)
    ]
    return weights, tuple(ToyNetwork(lambda x, w=w: (x - 1) @ w / 4) for w in weights)


def one_step(settings=DEFAULT, number=3, turn=0, coefficient=None, share=None, rank=slice(None), fewer=False):
    """A step of some labelled and unlabelled samples in epoch 4; everything that went in and came out."""
    objective, store = divided(settings)
    weights, networks = two_networks()
    walks = objective.rounds(store, pass_(4, 2))[turn]
    index = [torch.from_numpy(walk.index[:n]) for walk, n in zip(walks, (8, 6), strict=True)]
    images = torch.randn(N, PIXELS, generator=torch.Generator().manual_seed(7))
    draws = objective.draw(store, pass_(4, 2), 10)
    if coefficient is not None:
        draws = dataclasses.replace(draws, coefficient=torch.full_like(draws.coefficient, coefficient))
    batches = tuple(
        minibatch(
            images[i[rank]],
            i[rank],
            Share(len(i)) if share is None else dataclasses.replace(share, count=len(i)),
        )
        for i in index
    )[: 1 if fewer else 2]
    step = Step(networks, batches, store, torch.tensor(number), torch.tensor(4), draws, turn)
    return objective.loss(step), store, index, images, draws, weights, networks


def by_hand(store, index, images, draws, weights, number, turn, *, only="all", last=None):
    """Equations 3 to 12 in float64 for networks (x - 1) W / 4; a view adds its number to the images.

    `last`: other weights for the mixed images than those that make the targets.
    """
    own, peer = (weights[k].detach().double().numpy() for k in (turn, 1 - turn))
    x, u = (images[i].double().numpy() for i in index)

    def predict(weight, inputs):
        return softmax((inputs - 1) @ weight / 4)

    def sharpened(p):
        return p**2 / (p**2).sum(1, keepdims=True)

    w = store["clean"][index[0], 1 - turn].double().numpy()[:, None]
    assert (w > 0.5).all()
    label = np.eye(C)[store["given"][index[0]].numpy()]
    refined = sharpened(w * label + (1 - w) * (predict(own, x) + predict(own, x + 1)) / 2)
    guess = sharpened(sum(predict(net, u + view) for net in (own, peer) for view in (0, 1)) / 4)
    rows, target = np.concatenate([x, x + 1, u, u + 1]), np.concatenate([refined, refined, guess, guess])
    keys = np.concatenate([draws.keys[2 * turn + v][i].numpy() for i in index for v in (0, 1)])
    partner, part = np.argsort(keys, kind="stable"), float(draws.coefficient[number])
    mixed = part * rows + (1 - part) * rows[partner]
    wanted = part * target + (1 - part) * target[partner]
    n = 2 * len(x)
    if only == "labelled":
        mixed, wanted = mixed[:n], wanted[:n]
    p = predict(own if last is None else last, mixed)
    loss = -(wanted[:n] * np.log(p[:n])).sum(1).mean()
    if only == "all":
        loss += float(draws.weight[number]) * ((p[n:] - wanted[n:]) ** 2).mean()
    return loss + (np.log(1 / C / p.mean(0)) / C).sum()


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("only", ["all", "labelled"])
def test_a_step_is_the_paper_s(turn, only):
    outcome, store, index, images, draws, weights, _ = one_step(Settings(mixed=only), turn=turn)
    assert draws.weight[3] > 0
    assert 0.5 < draws.coefficient[3] < 1
    expected = by_hand(store, index, images, draws, weights, 3, turn, only=only)
    assert outcome.loss[turn].item() == pytest.approx(expected, rel=1e-5)
    assert outcome.loss[1 - turn] is None


@pytest.mark.parametrize("turn", [0, 1])
def test_only_the_network_whose_turn_it_is_learns_and_its_gradient_is_right(turn):
    """Targets are constants: finite differences move the weights of the last forward pass alone."""
    outcome, store, index, images, draws, weights, _ = one_step(turn=turn)
    outcome.loss[turn].backward()
    assert weights[1 - turn].grad is None
    own = weights[turn].detach().double().numpy()
    for place in np.ndindex(PIXELS, C):
        ends = []
        for sign in (1, -1):
            moved = own.copy()
            moved[place] += sign * 1e-5
            ends.append(by_hand(store, index, images, draws, weights, 3, turn, last=moved))
        slope = (ends[0] - ends[1]) / 2e-5
        assert weights[turn].grad[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-5), place


def test_unmixed_and_sure_of_its_labels_it_is_cross_entropy():
    """lambda' = 1, w = 1 and no unlabelled term: the loss of the two augmentations, and the term of equation 11."""
    objective, store = divided(Settings(unlabelled_weight=0.0))
    store.put("clean", torch.ones(N, 2))
    weights, networks = two_networks()
    labelled, _ = objective.rounds(store, pass_(20, 2))[0]
    index = torch.from_numpy(labelled.index[:9])
    images = torch.randn(9, PIXELS, generator=torch.Generator().manual_seed(7))
    draws = objective.draw(store, pass_(20, 2), 10)
    draws = dataclasses.replace(draws, coefficient=torch.ones(10))
    step = Step(networks, (minibatch(images, index),), store, torch.tensor(0), torch.tensor(20), draws)
    loss = objective.loss(step).loss[0].item()
    logits = torch.cat([(images - 1) @ weights[0] / 4, images @ weights[0] / 4])
    label = store["given"][index].repeat(2)
    cross_entropy = torch.nn.functional.cross_entropy(logits, label).item()
    mean = torch.softmax(logits.double(), 1).mean(0)
    assert loss - (1 / C * (1 / C / mean).log()).sum().item() == pytest.approx(cross_entropy, rel=1e-5)


def test_without_unlabelled_samples_only_the_supervised_part_is_left():
    outcome, store, index, images, draws, weights, networks = one_step(fewer=True)
    nothing = [index[0], index[0][:0]]
    expected = by_hand(store, nothing, images, draws, weights, 3, 0, only="labelled")
    assert outcome.loss[0].item() == pytest.approx(expected, rel=1e-5)
    assert networks[1].calls == []


@pytest.mark.parametrize(("forward", "mode"), [("update", "train"), ("freeze", "frozen")])
def test_targets_come_from_the_own_network_in_training_and_the_peer_in_evaluation_mode(forward, mode):
    *_, networks = one_step(Settings(label_forward=forward))
    assert networks[0].calls == [mode] * 4 + ["train"]
    assert networks[1].calls == ["evaluated"]


def test_labels_that_were_dropped_do_not_matter_and_those_that_were_kept_do():
    first, _, index, *_ = one_step()
    for walk, differs in ((0, True), (1, False)):
        objective, again = divided()
        given = again["given"].clone()
        given[index[walk]] = (given[index[walk]] + 1) % C
        again.put("given", given)
        second = repeat_step(objective, again, index)
        assert (first.loss[0].item() != second.loss[0].item()) == differs


def repeat_step(objective, store, index):
    """The step of `one_step` with another store."""
    _, networks = two_networks()
    images = torch.randn(N, PIXELS, generator=torch.Generator().manual_seed(7))
    draws = objective.draw(store, pass_(4, 2), 10)
    batches = tuple(minibatch(images[i], i) for i in index)
    return objective.loss(Step(networks, batches, store, torch.tensor(3), torch.tensor(4), draws))


def test_a_label_that_a_rule_added_has_a_say():
    """Its w is next to 0; it counts as the threshold."""
    objective, store = divided()
    index = [torch.arange(8), torch.arange(8, 14)]
    store.put("clean", torch.zeros(N, 2))
    by_rule = repeat_step(objective, store, index).loss[0].item()
    store.put("clean", torch.full((N, 2), 0.5))
    assert repeat_step(objective, store, index).loss[0].item() == by_rule
    store.put("clean", torch.full((N, 2), 0.9))
    assert repeat_step(objective, store, index).loss[0].item() != by_rule


def test_agreement_is_that_of_predictions_with_refined_labels():
    outcome, store, index, images, _, weights, _ = one_step()
    p = (
        torch.softmax((images[index[0]] - 1) @ weights[0] / 4, 1)
        + torch.softmax(images[index[0]] @ weights[0] / 4, 1)
    ) / 2
    w = store["clean"][index[0], 1][:, None]
    refined = w * torch.nn.functional.one_hot(store["given"][index[0]], C) + (1 - w) * p
    assert torch.equal(outcome.predicted, p.argmax(1))
    assert torch.equal(outcome.wanted, refined.argmax(1))


def test_over_ranks_the_parts_add_up_where_nothing_is_mixed():
    """Each rank mixes its own rows; unmixed, the mean over ranks is the step of one rank, for loss and gradient."""
    whole, *_, weights, _ = one_step(coefficient=1.0)
    whole.loss[0].backward()

    def on_rank(rank, share):
        outcome, *_, own, _ = one_step(coefficient=1.0, share=share, rank=slice(rank, None, 2))
        outcome.loss[0].backward()
        return outcome.loss[0].item(), own[0].grad

    parts = on_ranks(8, on_rank)
    assert np.mean([loss for loss, _ in parts]) == pytest.approx(whole.loss[0].item(), rel=1e-5)
    torch.testing.assert_close((parts[0][1] + parts[1][1]) / 2, weights[0].grad, rtol=1e-4, atol=1e-6)
