"""The engine on PyTorch: CUDA graphs and fused kernels, and the preprocessing of frames on the device."""
