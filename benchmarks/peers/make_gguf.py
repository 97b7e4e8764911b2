"""Write a GGUF file in another of llama.cpp's types: make_gguf.py SOURCE.gguf OUTPUT.gguf {q4_0,q8_0,bf16}

Runs in llama.cpp's interpreter. Types made from a quantized source carry its rounding too: right for speed,
not for quality.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp

TYPES = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
}


def main() -> None:
    source, output, kind = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = TYPES[kind]
    params.allow_requantize = True
    status = llama_cpp.llama_model_quantize(source.encode(), output.encode(), ctypes.byref(params))
    if status != 0:
        sys.exit(f"llama.cpp gave status {status} for {source} as {kind}")


if __name__ == "__main__":
    main()
