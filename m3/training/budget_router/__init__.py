"""Training of a budget router: what a finished model loses at each budget, learned and calibrated."""
