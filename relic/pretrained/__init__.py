"""Published networks of diffusers and transformers behind relic's interfaces; no other room imports those libraries."""
