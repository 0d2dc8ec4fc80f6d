"""Models for the benchmarks that no index offers: the starter in other quantizations, because kernels differ by them.

Needs the `gguf` package, which the project's development environment has.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from common import home_with_starter

REQUANTIZED = ("Q4_0", "Q8_0", "F16")
"""What `starter_as` can make of the starter, besides Q4_1 as it is shipped."""


def starter_as(quantization: str) -> Path:
    """The starter model with its matrices in `quantization`, made once and kept in the temporary folder.

    Rounded a second time, so its answers are a little worse than those of a file made from the original weights; it
    computes at that quantization's speed.
    """
    import gguf
    from gguf import quants

    _, starter = home_with_starter()
    if quantization == "Q4_1":
        return starter
    if quantization not in REQUANTIZED:
        raise SystemExit(f"no {quantization} can be made of the starter: one of Q4_1, {', '.join(REQUANTIZED)}")
    path = Path(tempfile.gettempdir()) / f"smollm2-{quantization.lower()}.gguf"
    if path.exists():
        return path
    kind = gguf.GGMLQuantizationType[quantization]
    reader = gguf.GGUFReader(starter)
    partial = path.with_suffix(f".{os.getpid()}")
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(partial), architecture)
    for field in reader.fields.values():
        # The writer puts in the first by itself, and the reader makes up the others.
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        # Norms are F32, and embeddings stay Q8_0, as in every file of these kinds.
        if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1:
            data = quants.quantize(quants.dequantize(tensor.data, tensor.tensor_type), kind)
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    return path


if __name__ == "__main__":
    for name in REQUANTIZED:
        print(starter_as(name))
