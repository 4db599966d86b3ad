"""What second opinions cost. Importing this needs no torch, for dry runs and calibrations."""

SMALLER = 2 / 3
"""The `scale` opinion is given at this share of the network's sides, which costs (2 / 3)^2 = 0.44 of a pass. At half the sides
the network no longer sees what the label shows; much nearer to 1 it sees the same."""

PASSES = {"flip": 1.0, "scale": SMALLER**2, "checker": 1.0}
"""Forward passes that each opinion costs on top of the label's own. The `scale` opinion is at a smaller size; a checker has its
own network, which may be a smaller one."""
