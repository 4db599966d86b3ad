"""What second opinions cost. Importing this needs no torch: a dry run and a calibration ask for it."""

SMALLER = 2 / 3
"""Size of the network's sides for the opinion on scale: (2 / 3)^2 = 0.44 of a pass. Half the size would no longer see what the
label shows; a size much nearer to 1 would see the same."""

PASSES = {"flip": 1.0, "scale": SMALLER**2, "checker": 1.0}
"""Forward passes of each opinion beside the label's own. The one on scale runs at a smaller size; a checker's runs through a
network of its own, which may be smaller."""
