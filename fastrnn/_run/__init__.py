"""From checked arguments to one operator a layer: stacks, directions, packing, autocast, streaming."""
