"""Models as folders that others can load: safetensors with a model card, MONAI bundles, TorchScript."""
