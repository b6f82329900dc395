"""Errors a user can act on: what is wrong, where, and how to fix it. Each carries the exit code of the process."""


class UserError(Exception):
    """The request cannot be carried out as asked (exit code 2).

    `what` is one line; `where` names the file, field or row; `fix` says what to do; the text is these lines.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))


class DataError(UserError):
    """The data are missing, damaged or contradict themselves (exit code 3)."""

    exit_code = 3
