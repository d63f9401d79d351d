"""Float checkpoints to integer packages."""

from host.quantize.convert import QuantizeReport, TensorReport, quantize_checkpoint
from host.quantize.schemes import Int8PerTensor, Int16PowerOfTwo, Quantized, Scheme

__all__ = [
    "Int8PerTensor",
    "Int16PowerOfTwo",
    "QuantizeReport",
    "Quantized",
    "Scheme",
    "TensorReport",
    "quantize_checkpoint",
]
