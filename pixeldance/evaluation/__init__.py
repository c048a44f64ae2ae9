"""How good the clips are: metrics, peers, and a comparison on what was never seen in training.

``python -m pixeldance.evaluation compare`` prints the tables.
"""
