"""A simulated fleet: what it means to do (plan), the calls it makes (calls, runs), and whether the tracker kept its
word (feed, audit)."""
