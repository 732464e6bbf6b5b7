"""Files of a sweep: the answers' store, the run folder, scores of single documents."""
