"""All that a published checkpoint needs: imports only the standard library, torch, transformers and itself."""
