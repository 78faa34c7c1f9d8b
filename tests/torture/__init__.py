"""Torture: pods under load while a nemesis freezes, kills and restarts them and their Redis; then a checker judges it.

``python -m tests.torture --seconds 120 --seed 7``. What is judged, and how, is in ``docs/reliability.md``.
"""
