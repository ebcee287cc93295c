"""Published models of other libraries behind our interfaces: the only room with diffusers and transformers."""
