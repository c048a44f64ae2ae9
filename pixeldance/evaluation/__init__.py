"""How good the clips are: metrics, peers, text adherence, and a report on what was never trained.

``pixeldance eval``, or ``python -m pixeldance.evaluation``, measures all of it and writes a report.
"""
