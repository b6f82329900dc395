"""The numbers of Tables I to IV of arXiv 1912.08741: one run each, no deviations published.

A `?` marks a number that the text of the paper leaves doubtful: it is shown, never compared. `-` means none.
Accuracies are in per cent, of the best epoch (Table II says so; for III and IV it is inferred).
"""

from dataclasses import dataclass
from typing import Any

# The paper's abbreviations of the methods.
ABBREVIATIONS = {
    "ce": "CE",
    "forward": "FW",
    "joint": "R",
    "mixup": "M",
    "gce": "GCE",
    "bootstrap": "DB",
    "dmi": "DMI",
    "pencil": "P",
    "dividemix": "DM",
    "two_stage": "TS",
    "nlnl": "NL",
    "incv": "INCV",
    "drpl": "DRPL",
}

# Table I, ImageNet32: share of right (TPR) and of wrong labels (FPR) that are kept as clean. The text of the paper has
# lost the rest of the rows of DRPL, and with them which metric the last two numbers of U 80 % are.
_DETECTION = {
    "imagenet32": """
        method     metric NU-ID10 NU-ID30 NU-ID50 U-ID20 U-ID40 U-ID60 U-ID80
        two_stage  tpr    .28     .14     .12     .23    .14    .15    .15
        two_stage  fpr    .04     .07     .09     .08    .06    .07    .09
        nlnl       tpr    .80     .75     .64     .83    .77    .34    -
        nlnl       fpr    .09     .26     .34     .03    .03    .00    -
        drpl       tpr    .82     .90     .87     .89    .94    .92    .83?
        drpl       fpr    -       -       -       -      -      -      .05?
        """,
    "imagenet32 outside": """
        method     metric NU-OOD10 NU-OOD30 NU-OOD50 U-OOD20 U-OOD40 U-OOD60 U-OOD80
        two_stage  tpr    .40      .36      .27      .38     .32     .30     .29
        two_stage  fpr    .04      .06      .06      .03     .02     .02     .06
        nlnl       tpr    .82      .81      .75      .80     .79     .66     -
        nlnl       fpr    .10      .18      .22      .03     .03     .01     -
        """,
}

# Tables II (ImageNet), III (WebVision) and IV (CIFAR).
_ACCURACY = {
    "imagenet32": """
        method    NU-ID30 NU-ID50 U-ID40 U-ID80 NU-OOD30 NU-OOD50 U-OOD40 U-OOD80
        forward   54.22   43.38   52.06  31.20  62.14    55.06    56.32   40.08
        joint     67.24   63.62   62.98  41.52  66.36    62.80    64.04   45.00
        mixup     67.14   51.96   61.98  38.92  66.14    60.62    64.66   47.40
        bootstrap 62.88   52.20   67.62  45.34  64.86    60.58    65.96   39.30
        drpl      73.46   68.18   73.48  61.78  71.38    67.32    71.36   54.10
        """,
    "imagenet64": """
        method    NU-ID30 NU-ID50 U-ID40 U-ID80 NU-OOD30 NU-OOD50 U-OOD40 U-OOD80
        forward   60.10   46.06   57.42  37.84  69.86    63.38    63.08   47.68
        joint     74.28   69.20   70.98  48.44  74.22    70.74    72.78   54.00
        mixup     74.02   58.14   69.90  49.22  74.78    69.40    73.94   59.54
        bootstrap 71.30   60.98   74.56  56.44  77.94    70.38    74.08   50.98
        drpl      81.90   77.66   81.50  73.08  80.44    76.38    79.76   64.34
        """,
    "webvision": """
        method    0
        ce        73.88
        forward   74.68
        joint     76.52
        mixup     80.76
        gce       74.28
        bootstrap 79.68
        dmi       73.96
        pencil    79.96
        dividemix 78.16
        drpl      82.08
        """,
    "cifar10": """
        method    0     NU10  NU30  NU40  U20   U40   U60   U80
        ce        93.87 90.97 90.22 88.16 87.75 83.32 75.71 43.69
        forward   94.61 90.85 87.95 84.85 85.46 80.67 70.86 45.58
        joint     94.37 93.70 92.69 92.70 92.77 89.97 85.62 53.26
        mixup     96.07 93.79 91.38 87.01 91.27 85.84 80.78 57.93
        gce       93.93 91.40 90.45 88.39 88.49 84.09 76.55 43.39
        bootstrap 92.78 91.77 93.23 91.25 93.95 92.38 89.53 49.90
        dmi       93.93 91.31 91.34 88.64 88.40 83.98 75.91 44.17
        pencil    93.94 93.19 92.94 91.63 92.87 91.34 89.15 56.14
        drpl      94.47 95.70 93.65 93.14 94.20 92.92 89.21 64.35
        """,
    # FW repeats the three numbers of CE; GCE jumps by 10 over CE, and over its own number at 20 %.
    "cifar100": """
        method    0     NU10  NU30  NU40  U20   U40    U60    U80
        ce        74.59 68.18 54.20 46.55 59.19 51.44  39.05  19.59
        forward   75.43 68.82 54.65 45.38 61.03 51.44? 39.05? 19.59?
        joint     74.43 73.09 68.25 59.49 70.79 66.35  57.48  30.65
        mixup     78.33 73.39 59.15 49.40 66.60 54.69  45.80  27.02
        gce       74.91 68.34 55.56 47.24 60.09 61.23? 49.75? 25.77?
        bootstrap 70.64 68.19 62.81 55.76 69.12 64.84  57.85  46.45
        dmi       74.75 68.29 54.40 46.65 59.16 53.49  41.49  20.50
        pencil    77.80 76.31 63.67 50.64 75.16 69.56  56.16  27.12
        drpl      72.27 72.40 69.30 65.86 71.25 73.13  68.71  53.04
        """,
}

# Options of a noise that the paper's numbers hold for, whatever their value or with this one.
_ANY_VALUE = ("kind", "ratio", "exact", "confusion", "seed", "legacy_rng", "ood_direction")
_ONE_VALUE = {"excludes_truth": True, "both_directions": True}
_FAMILIES = {
    "uniform": ("U", "ID"),
    "nonuniform": ("NU", "ID"),
    "uniform_ood": ("U", "OOD"),
    "nonuniform_ood": ("NU", "OOD"),
}


@dataclass(frozen=True)
class Number:
    """A published number; a doubtful one is not compared."""

    value: float
    doubtful: bool = False


def noise_code(recipe: str, options: dict[str, Any]) -> str | None:
    """What the tables call a noise (`NU10`, `U-OOD80`, `0`); None for one that the paper does not have.

    `options` are those of `--noise.*`, by name without `noise.`.
    """
    for key, value in options.items():
        if key not in _ANY_VALUE and not (key in _ONE_VALUE and value == _ONE_VALUE[key]):
            return None
    kind, ratio = options.get("kind", "none"), float(options.get("ratio", 0.0))
    if kind == "none" or ratio == 0:
        return "0"
    if kind not in _FAMILIES or abs(100 * ratio - round(100 * ratio)) > 1e-9:
        return None
    family, place = _FAMILIES[kind]
    infix = f"-{place}" if recipe.startswith("imagenet") else ""
    return f"{family}{infix}{round(100 * ratio)}"


def accuracy(recipe: str, method: str, options: dict[str, Any]) -> Number | None:
    """Test accuracy in per cent, Tables II to IV; None where the paper has none."""
    return _ACCURACIES.get((recipe, method, noise_code(recipe, options)))


def detection(recipe: str, method: str, metric: str, options: dict[str, Any]) -> Number | None:
    """`tpr` or `fpr` as a fraction, Table I; None where the paper has none."""
    return _DETECTIONS.get((recipe, method, metric, noise_code(recipe, options)))


def _number(text: str) -> Number:
    return Number(float(text.rstrip("?")), text.endswith("?"))


def _rows(text: str, names: int) -> dict[tuple[str, ...], Number]:
    """(names of the row..., column) -> number, of a table whose first `names` columns are names."""
    head, *body = (line.split() for line in text.strip().splitlines())
    return {
        (*row[:names], column): _number(value)
        for row in body
        for column, value in zip(head[names:], row[names:], strict=True)
        if value != "-"
    }


_ACCURACIES: dict[tuple[str | None, ...], Number] = {
    (recipe, *key): number for recipe, text in _ACCURACY.items() for key, number in _rows(text, 1).items()
}
_DETECTIONS: dict[tuple[str | None, ...], Number] = {
    (place.split()[0], *key): number
    for place, text in _DETECTION.items()
    for key, number in _rows(text, 2).items()
}
