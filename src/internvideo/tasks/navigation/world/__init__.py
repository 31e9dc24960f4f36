"""Places to walk in: the protocol of an environment, an embedded 3-D world, and adapters to simulators."""
