"""Rendered worlds: images with exact depth from a seed, to train the embedded teacher and to test quality scores.

Worlds are rooms and open grounds full of boxes, ellipsoids, cylinders and thin things. They are textured, lit and shadowed, and
random cameras see them. They replace the synthetic data sets on which Depth Anything V2's own teacher was trained (arXiv
2406.09414, section 4: exact depth without sensor noise). Rendering needs only NumPy and torch. A seed gives the same world.
"""

from da2ray.worlds.render import World, render
from da2ray.worlds.scene import Scene, make_scene

__all__ = ["Scene", "World", "make_scene", "render"]
