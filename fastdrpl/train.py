"""`accelerate launch fastdrpl/train.py RECIPE ...`: the same program as `fastdrpl train RECIPE ...`."""

import sys

if __name__ == "__main__":
    # Run as a file, Python put this folder first on the path: its modules would shadow others', and the
    # package itself would not be found.
    from os.path import abspath, dirname

    sys.path[0] = dirname(dirname(abspath(__file__)))
    from fastdrpl.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
