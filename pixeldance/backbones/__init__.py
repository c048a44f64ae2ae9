"""Families of checkpoints behind one pipeline.

``Backbone`` is what the pipeline asks of a checkpoint; ``embedded`` is the model shipped with the
package, ``released`` runs the open Wan checkpoints. No folder here may be called ``wan``: diffusers
would take it for its own pipelines of that name when it loads a saved component.
"""
