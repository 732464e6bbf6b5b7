"""Several models, replicas and machines behind one address."""
