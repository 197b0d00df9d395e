"""`frontier doctor`: is this node, and are these ranks, fit to train? Measured numbers, each judged and with its mend."""
