"""The torch engine: static slots and paged caches on a GPU, Triton kernels, CUDA graphs; plain torch on a CPU.

``state`` holds what a row carries between calls, ``pages`` its cache, ``weights`` the checkpoint on the
device. ``reference`` computes a call in plain torch, ``launching`` with the kernels of ``open_kernels``,
``linear_kernels``, ``attention_kernels`` and ``selection_kernels``, whose programs have the shapes of ``tilings``;
``engine`` binds them to the engine interface. ``preprocessing`` makes uint8 frames model input on the device, with the
host's bits. ``compiling`` compiles the kernels of all of them before the first launch, in the process of
``compile_worker``.
"""
