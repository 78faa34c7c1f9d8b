"""What the tracker costs, measured beside its floor: `make bench`, or `python -m benchmarks --help`.

Everything runs on 127.0.0.1 and on free ports: a private Redis, the tracker, and the baselines under the very server
settings of `tracker serve`. The load comes from wrk. Each figure is the median of several rounds, in which the tracker
and its baselines take turns, so that a busy moment of the machine meets all of them; ratios are taken within a round.
"""
