"""Rendered worlds: images with exact depth from a seed, for training the embedded teacher and for tests of quality.

Rooms and open grounds full of boxes, ellipsoids, cylinders and thin things, textured, lit and shadowed, seen by random
cameras, in place of the synthetic sets that Depth Anything V2's own teacher was trained on (arXiv 2406.09414, section 4:
exact depth, no noise of sensors). Only NumPy and torch; the same seed gives the same world.
"""

from da2ray.worlds.render import World, render
from da2ray.worlds.scene import Scene, make_scene

__all__ = ["Scene", "World", "make_scene", "render"]
