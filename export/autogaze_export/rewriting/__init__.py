"""Other forms of the traced graphs, made by rewriting ONNX; needs ``onnx``, and no torch.

``traced → masked`` gives ``GraphVariant.OPSET24``, which is also for ONNX Runtime on a GPU, and ``masked → plain``
gives ``GraphVariant.PLAIN``; ``halved`` turns either, or a traced graph, into the precision ``fast``. All of them keep
names, order and meaning of inputs and outputs; only the caches change their type with ``fast``.
"""
