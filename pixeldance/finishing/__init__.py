"""What is done to a clip after it was made: more frames, more pixels, a signature.

Nothing of it runs unless it is asked for, and each network comes with its own package.
"""
