"""`python -m tests.fuzz --cases 1000000 --seed 7`: so many steps; `--structure` and `--entry` take one of them again."""

import argparse
import sys

import jax

from .runs import fuzz, summary

# As the tests have it: types and ranks never mix in silence.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Whole training steps against float64.")
    parser.add_argument("--cases", type=int, default=100_000, help="how many steps")
    parser.add_argument("--seed", type=int, default=0, help="what everything is drawn from")
    parser.add_argument("--structure", type=int, help="only the structure of this number")
    parser.add_argument("--entry", type=int, help="and only this entry of its batch")
    options = parser.parse_args(arguments)
    run = fuzz(options.seed, options.cases, options.structure, options.entry)
    print(summary(run))
    return int(run.wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
