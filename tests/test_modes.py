"""Which mode a run stands on, what it says of that, and what it refuses."""

import pytest

from fastdrpl.errors import UserError
from fastdrpl.modes import build_ladder

HERE = {"cuda": True, "precision": "bf16", "world": 1, "sync_bn": False, "debugging": False}


def ladder_of(asked="auto", before=None, **here):
    told = []
    return build_ladder(asked, before, **(HERE | here), say=told.append), told


@pytest.mark.parametrize(
    ("here", "mode", "cause"),
    [
        ({}, "captured", None),
        ({"cuda": False, "precision": "fp32"}, "eager", None),
        ({"sync_bn": True, "world": 2}, "eager", "sync_bn"),
        ({"debugging": True}, "eager", "FASTDRPL_KERNELS_DEBUG=1"),
        ({"world": 2}, "compiled", "2 ranks"),
        ({"precision": "fp16"}, "compiled", "fp16"),
    ],
)
def test_auto_takes_the_best_that_can_be_had_and_says_what_cannot(here, mode, cause):
    ladder, told = ladder_of(**here)
    assert ladder.mode == mode
    assert len(told) == len(ladder.reasons) == (cause is not None)
    if cause is not None:
        assert cause in told[0] and f"steps are {mode} from here on" in told[0] and cause in ladder.reasons[0]
        with pytest.raises(UserError, match=r"--engine.mode captured cannot be had") as caught:
            ladder_of("captured", **here)
        assert cause in str(caught.value) and caught.value.exit_code == 2


def test_graphs_need_a_gpu():
    with pytest.raises(UserError, match="CUDA graphs need a GPU"):
        ladder_of("captured", cuda=False)
    assert ladder_of("compiled", cuda=False)[0].mode == "compiled"


def test_a_run_that_goes_on_keeps_its_mode():
    assert ladder_of(before="compiled")[0].mode == "compiled"
    assert ladder_of(before="eager")[0].mode == "eager"
    assert ladder_of("compiled", before="eager")[0].mode == "compiled"
    ladder, told = ladder_of(before="captured", cuda=False)
    assert ladder.mode == "eager" and "CUDA graphs need a GPU" in told[0]


def test_a_ladder_only_goes_down():
    ladder, told = ladder_of(before="compiled")
    ladder.step_down("captured", "no reason")
    ladder.step_down("compiled", "no reason")
    assert (ladder.mode, ladder.reasons, told) == ("compiled", [], [])
