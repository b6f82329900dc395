"""Which labels are made wrong, and how: the settings of `fastdrpl.noise`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastdrpl.loaders.errors import UserError
from fastdrpl.settings import setting
from fastdrpl.transitions import MAKE_CONFUSION

OUTSIDE_KINDS = ("uniform_ood", "nonuniform_ood")


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Which labels are made wrong, and how."""

    kind: Literal["none", "uniform", "nonuniform", "matrix", "uniform_ood", "nonuniform_ood"] = setting(
        "none", "own: add it with --noise.kind"
    )
    """none: labels as they are. uniform (U-ID): any class. nonuniform (NU-ID): a similar class. matrix: by a file.
    uniform_ood (U-OOD), nonuniform_ood (NU-OOD): the label stays, and an image of any (a similar) class
    outside is shown; ImageNet with --classes paper."""
    ratio: float = setting(0.0, "P IV gives 0.1 to 0.8")
    """Share of the samples whose label or image is drawn anew, 0..1 (CIFAR-10 nonuniform: of the classes with a
    partner)."""
    exact: Literal["published", "global", "per_class", "bernoulli"] = setting(
        "published", "C; P IV-A keeps 1 - r in each class (per_class)"
    )
    """Where the ratio holds.
    global: in the whole set. per_class: in each class (the paper's text). bernoulli: on average only.
    published: as in the published code, bernoulli for nonuniform on CIFAR, else global."""
    excludes_truth: bool = setting(True, "P IV-B")
    """Uniform noise draws among the C-1 wrong classes (paper), or all C (then ratio*(C-1)/C are wrong)."""
    both_directions: bool = setting(True, "C; P IV-B lists cat to dog only")
    """CIFAR-10 nonuniform: cats and dogs change into each other (published code), or only cats into dogs."""
    matrix: Path | None = None
    """Transition matrix for kind=matrix: .npy or .csv, C x C, row = true class, rows sum to 1."""
    matrix_diagonal: Literal["keep", "drop"] = "keep"
    """keep: the matrix says itself how many labels stay right.
    drop: the ratio says how many change, and the matrix without its diagonal says into what."""
    confusion: Path | None = None
    """Which class is taken for which, made by `fastdrpl confusion`: for nonuniform on ImageNet and nonuniform_ood."""
    ood_direction: Literal["row", "column"] = setting(
        "column", "C; P IV-A draws by the row of the true class"
    )
    """nonuniform_ood: a label gets outside classes whose images are taken for it (column, published code),
    or those that its own images are taken for (row, the paper's text)."""
    file: Path | None = None
    """Labels exported earlier (.npz, .csv or .parquet), or published by others (.pt of CIFAR-10N, .npy, .txt, .csv);
    nothing is drawn."""
    file_column: str | None = None
    """Which of the label sets of a file, by its name: worse_label, aggre_label, ... of CIFAR-10N."""
    legacy_rng: bool = False
    """Draw as the published code does, with NumPy's old generator: the same labels, sample for sample."""
    seed: int = setting(42, "C")
    """Seed of the noise; it does not depend on the seed of the training. 42 is the published one."""

    def __post_init__(self) -> None:
        """Raises UserError for values that are out of range or do not go together."""
        if not 0 <= self.ratio <= 1:  # also refuses nan
            raise UserError(f"the noise ratio must be in 0..1, got {self.ratio}", where="noise.ratio")
        if not 0 <= self.seed < (2**32 if self.legacy_rng else 2**64):
            raise UserError(
                f"the noise seed is out of range: {self.seed}", where="noise.seed", fix="use 0..2^32-1"
            )
        if (self.kind == "matrix") != (self.matrix is not None):
            fix = "use --noise.kind matrix together with --noise.matrix FILE"
            raise UserError(
                "a matrix file needs kind matrix, and kind matrix needs a file", where="noise", fix=fix
            )
        if self.file is not None and self.kind != "none":
            fix = "use --noise.kind none with --noise.file"
            raise UserError(f"labels come from a file and from kind {self.kind}", where="noise.file", fix=fix)
        if self.file_column is not None and self.file is None:
            raise UserError(
                "a label set of which file?", where="noise.file_column", fix="give --noise.file FILE"
            )
        if self.uses_whole_matrix and (self.ratio or self.exact not in ("published", "bernoulli")):
            fix = "use --noise.ratio 0 --noise.exact published, or --noise.matrix_diagonal drop"
            raise UserError("with its diagonal kept, the matrix itself says how many labels change", fix=fix)
        if self.confusion is not None and self.kind not in ("nonuniform", "nonuniform_ood"):
            fix = "use it with --noise.kind nonuniform or nonuniform_ood"
            raise UserError(f"kind {self.kind} does not draw by confusion", where="noise.confusion", fix=fix)
        if self.kind == "nonuniform_ood" and self.confusion is None:
            raise UserError("kind nonuniform_ood draws by confusion", where="noise.kind", fix=MAKE_CONFUSION)
        if self.legacy_rng and (self.kind in OUTSIDE_KINDS or self.confusion is not None):
            what = "the published draws for ImageNet depend on an order of its images that was not published"
            raise UserError(what, where="noise.legacy_rng", fix="leave --noise.legacy_rng out")
        if self.legacy_rng and (self.kind == "matrix" or self.choice != self._published_choice):
            fix = "use kind uniform or nonuniform with --noise.exact published"
            raise UserError("there are no published draws for this noise", where="noise.legacy_rng", fix=fix)

    @property
    def choice(self) -> str:
        """`exact` with "published" resolved: global, per_class or bernoulli."""
        return self._published_choice if self.exact == "published" else self.exact

    @property
    def _published_choice(self) -> str:
        return "bernoulli" if self.kind == "nonuniform" and self.confusion is None else "global"

    @property
    def uses_whole_matrix(self) -> bool:
        """Every sample is drawn anew, by the matrix with its diagonal."""
        return self.kind == "matrix" and self.matrix_diagonal == "keep"
