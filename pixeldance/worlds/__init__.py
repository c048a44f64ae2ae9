"""Procedural training worlds: scenes whose pictures, motions and captions are known exactly."""
