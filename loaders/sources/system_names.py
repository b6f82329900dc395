"""Names of folders and files that no person made: network storage, macOS and Windows leave them everywhere."""

import re

_SYSTEM = re.compile(
    r"""
    __macosx | \$recycle\.bin | recycler | system\ volume\ information | found\.\d{3} | lost\+found
    | @ea.* | @__thumb | [@\#]recycle | [@\#]snapshots? | @recently-snapshot | @tmp | @syno.* | ~snapshot
    | network\ trash\ folder | temporary\ items | __pycache__
    | thumbs\.db | ehthumbs.*\.db | desktop\.ini | icon\r
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_system(name: str) -> bool:
    """Whether a name is hidden (as those of version control are) or of those that a system makes for itself."""
    return name.startswith(".") or _SYSTEM.fullmatch(name) is not None
