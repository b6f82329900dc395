"""The two-stage method's plan: agreement decides, DRPL's semi-supervised training follows."""

import dataclasses

import pytest

from fastdrpl.errors import UserError
from fastdrpl.kernels.loss_head import Regulariser
from fastdrpl.methods import load_method
from fastdrpl.methods.ce import CrossEntropy
from fastdrpl.methods.drpl import SemiSupervised
from fastdrpl.plan import plan_of
from fastdrpl.recipes import recipe_named


def config(recipe="cifar10", scale=1.0, **changes):
    found = recipe_named(recipe).config_for("two_stage")
    return dataclasses.replace(
        found, epochs_scale=scale, two_stage=dataclasses.replace(found.two_stage, **changes)
    )


def test_the_agreement_after_plain_training_decides():
    base, semi = plan_of(config(share=0.25))
    assert base.objective == CrossEntropy()
    assert (base.schedule.epochs, base.schedule.milestones) == (40, ())
    assert base.detector.share == 0.25
    assert base.detector.adjustable == ("two_stage.share",)
    (read,) = [look for look in base.looks if look.into in base.detector.reads]
    assert read.read == "probability"
    assert [look.into for look in base.looks if look.read == "loss"] == ["loss_base"]
    assert base.decides
    assert semi.detector is None


def test_the_second_stage_is_drpls_with_these_settings():
    changes = {"prior_weight": 0.3, "entropy_weight": 0.1, "mixup_alpha": 2.0, "redraw": 0.05}
    objective = plan_of(config(**changes))[1].objective
    assert isinstance(objective, SemiSupervised)
    assert objective.regulariser == Regulariser(0.3, 0.1)
    assert (objective.drpl.mixup_alpha, objective.drpl.redraw) == (2.0, 0.05)


def test_the_scale_moves_every_epoch_number():
    full, tenth = plan_of(config()), plan_of(config(scale=0.1))
    assert [s.schedule.epochs for s in tenth] == [round(s.schedule.epochs / 10) for s in full]
    assert tenth[1].schedule.milestones == (15, 22)


def test_it_is_called_a_re_interpretation_where_users_see_it():
    assert "re-interpretation" in load_method("two_stage").summary


def test_a_share_above_one_is_refused_by_its_flag():
    with pytest.raises(UserError, match=r"--two_stage\.share"):
        config(share=2.0)
