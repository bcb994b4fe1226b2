"""The bundled demo encoder: a small ViT, the recipe that makes it, and its weights. See `architecture` and `pretrain`."""
