"""Real machines: certificates and keys, a SuperLink, SuperNodes with a warm worker, and runs sent to them."""
